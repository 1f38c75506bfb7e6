"""CombinedAdam with fixed weights beside torch.optim.Adam, and its dot products beside NumPy's, in float64."""

from typing import Any

import numpy as np
import torch
from cases import Case
from closeness import TooFar, check_params
from torch import Tensor, nn

from mtadam_fused import CombinedAdam
from mtadam_fused.rules import Rule

FAULTS = ("lr +1 %", "no weights", "no last element", "other pair", "absent term")

# Of the sum of the products' absolute values, by arithmetic: some fifty roundings one after another.
GRAM_RELATIVE = {torch.float64: 1e-14, torch.float32: 3e-6}


class Fixed(Rule):
    """Fixed weights, with a look at the gradients of all parameters."""

    def __init__(self, parameters: list[nn.Parameter], weights: list[float]) -> None:
        self.parameters = parameters
        self.weights = torch.tensor(weights, dtype=torch.float64, device=parameters[0].device)

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        return self.weights


def run_weighted(case: Case, backend: str, fault: str | None = None) -> CombinedAdam:
    """Runs a case's steps, and compares parameters and dot products at every one.

    Raises:
        TooFar: they disagree.
    """
    random = np.random.default_rng(case.seed)
    params = case.params(random)
    options: dict[str, Any] = {name: value for name, value in case.options.items() if name != "norm_init"}
    if "betas" in options:
        options["betas"] = options["betas"][:2]
    weights = list(case.weights or [0.5 + k for k in range(case.terms)])
    optimizer = CombinedAdam(params, Fixed(params, weights), backend=backend, **options)
    adam, shadows = adam_of(params, options, fault)
    for k in range(case.terms):  # registers the terms in order, whatever is absent at first
        with optimizer.term(k):
            pass
    for _ in range(case.steps):
        before = [p.detach().cpu() if p.is_cuda else p.detach().clone() for p in params]
        grads = case.grads(random, params)
        if not any(grads):
            continue
        share_signs(grads)
        for k in range(case.terms):
            with optimizer.term(k):
                for p, of_terms in zip(params, grads, strict=True):
                    p.grad = of_terms.get(k)
        optimizer.step()
        for shadow, b, of_terms in zip(shadows, before, grads, strict=True):
            shadow.data.copy_(b)
            ones = fault == "no weights"
            sums = [(1.0 if ones else weights[k]) * g.double().cpu() for k, g in of_terms.items()]
            shadow.grad = torch.stack(sums).sum(dim=0) if sums else None
        adam.step()
        for p, shadow, b in zip(params, shadows, before, strict=True):
            check_params(p.detach().cpu(), shadow.detach().numpy(), b)
        check_grams(optimizer, grads, case.terms, fault)
    return optimizer


def share_signs(grads: list[dict[int, Tensor]]) -> None:
    """Gives an element's gradients one sign: where a sum cancels, float32 leaves nothing to compare."""
    for of_terms in grads:
        signs = [g.sign() for g in of_terms.values()][:1]
        for g in of_terms.values():
            g.abs_().mul_(signs[0])


def adam_of(
    params: list[nn.Parameter], options: dict[str, Any], fault: str | None
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """torch's Adam or AdamW with the same options, and the float64 parameters that it steps."""
    shadows = [nn.Parameter(p.detach().double().cpu().clone(memory_format=torch.contiguous_format)) for p in params]
    options = {"lr": 1e-3, "weight_decay": 0.0, **options}
    if fault == "lr +1 %":
        options["lr"] *= 1.01
    decoupled = options.pop("decoupled_weight_decay", False)
    return (torch.optim.AdamW if decoupled else torch.optim.Adam)(shadows, foreach=False, **options), shadows


def check_grams(optimizer: CombinedAdam, grads: list[dict[int, Tensor]], terms: int, fault: str | None) -> None:
    """Compares each parameter's dot products, [K, K], with NumPy's.

    Raises:
        TooFar: they differ, are not symmetric, or not zero where a term is absent.
    """
    for table in optimizer._tables._tables:
        for gram, row in zip(table.gram.cpu().numpy(), table.rows, strict=True):
            flat = {k: g.double().cpu().numpy().ravel() for k, g in grads[row].items()}
            if fault == "no last element":
                flat = {k: g[:-1] for k, g in flat.items()}
            expected, size = np.zeros((terms, terms)), np.zeros((terms, terms))
            for k, g in flat.items():
                for j, other in flat.items():
                    expected[k, j], size[k, j] = g @ other, np.abs(g) @ np.abs(other)
            if fault == "other pair":
                expected = np.roll(expected, 1, axis=0)
            if fault == "absent term":
                expected[expected == 0] = size[size > 0].min()
            if not np.array_equal(gram, gram.T) or (np.abs(gram - expected) > GRAM_RELATIVE[table.dtype] * size).any():
                raise TooFar(f"{gram} is not {expected}")
