"""MTAdam's stages apart, as tensors that are spread over processes need them: each leaves what the next one takes."""

from typing import Any

import torch
from closeness import TooFar, check_values, same
from torch import Tensor
from training import begun

from mtadam_fused.backends import Backend
from mtadam_fused.hyperparameters import BalancedHyperparameters
from mtadam_fused.table import Table, TermGradients, Work

BETA3 = 0.9  # the default


def begin(backend: str, device: str, **problem: Any) -> tuple[Work, Backend]:
    """A step to be made, of which a term does not reach a parameter."""
    training = begun("MTAdam", device, backend, **problem)
    optimizer = training.optimizer
    grads: TermGradients = [list(of_term) for of_term in training.grads]
    grads[1][2] = None
    (table,) = optimizer._tables.current(optimizer.param_groups, optimizer.state, grads)
    groups = [BalancedHyperparameters.of(group) for group in optimizer.param_groups]
    return Work(table, grads, groups, [[1.0] * table.terms]), optimizer._backends[table.device]


def values(table: Table) -> list[Tensor]:
    found = [table.steps, table.running, table.norms.nan_to_num(-1), table.scales, *table.parts]
    return found + [value for state in table.states for value in state.values()]


@torch.no_grad()
def check_stages(backend: str, device: str = "cpu", **problem: Any) -> None:
    work, kernels = begin(backend, device, **problem)
    kernels.term_norms(work)
    norms = work.table.norms.cpu()
    expected = [[float("nan") if g is None else g.double().norm() for g in of_term] for of_term in work.grads]
    check_values(norms, torch.tensor(expected).t().numpy(), 1e-6)
    kernels.balance(work)
    kernels.mtadam_update(work)
    at_once, kernels = begin(backend, device, **problem)
    kernels.mtadam_step(at_once)
    assert same(values(work.table), values(at_once.table))


@torch.no_grad()
def check_other_norms(backend: str, device: str = "cpu") -> None:
    """Norms that others have put in the place of those of the gradients, which are parts, are those that count."""
    work, kernels = begin(backend, device)
    before = work.table.running.double().cpu()
    kernels.term_norms(work)
    whole = torch.rand_like(work.table.norms) + work.table.norms
    parts = work.table.norms.clone()
    work.table.norms.copy_(whole)
    kernels.balance(work)

    def check(norms: Tensor) -> None:
        norms = norms.double().cpu()
        running = torch.where(norms.isnan(), before, BETA3 * before + (1 - BETA3) * norms)
        check_values(work.table.running.cpu(), running.numpy(), 1e-6)
        check_values(work.table.scales.cpu(), (running[:, :1] / running).numpy(), 1e-5)

    check(whole)
    try:
        check(parts)
    except TooFar:
        return
    raise AssertionError("the norms of parts were taken")
