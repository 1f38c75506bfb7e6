"""Checks of PCGrad, the same for its torch code and its kernels: against the paper's algorithm, and the two in turn."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from mtadam_fused.rules import PCGrad
from mtadam_fused.rules.kernels import Kernel
from oracles.tolerances import TooFar
from tests.rules.gradients import MAKERS, UNKNOWN, Array, check_sum, conflicting, gram_of
from tests.support.rule_kernels import weighing_with

TERMS = (*range(1, 9), 20, 64)


def project(g: Array, orders: Tensor, against: str = "original") -> Array:
    """Loop over the vectors, as algorithm 1 of Yu et al. does."""
    projected = g.copy()
    for k, order in enumerate(orders.tolist()):
        for j in order:
            other = (g if against == "original" else projected)[j]
            dot = projected[k] @ other
            if j != k and dot < 0 and other @ other > 0:
                projected[k] = projected[k] - dot / (other @ other) * other
    return projected


def check_algorithm(against: str = "original", numbers: Sequence[int] = TERMS) -> None:
    """Check three steps of every kind of gradients, of every number of terms."""
    for make, terms, reduction in product(MAKERS, numbers, ("sum", "mean")):
        g = make(terms)
        preference = np.linspace(0, 2, terms) if terms % 2 == 0 else np.ones(terms)
        rule = PCGrad(reduction, seed=5, preference=preference.tolist() if terms % 2 == 0 else None)
        rule.check_terms(range(terms), allow_more=False)
        for _ in range(3):
            expected = preference @ project(g, rule.orders(terms), against)
            if reduction == "mean":
                expected = expected / max(1, (np.linalg.norm(g, axis=1) > 0).sum())
            # Where gradients are colinear, the sign of what rounding leaves of a dot product decides nothing.
            check_sum(rule(gram_of(g), UNKNOWN).numpy(), g, expected, 1e-9)


def check_against_torch(kernel: Kernel, device: str = "cpu") -> None:
    """Check steps with the kernel and with torch code in turn against torch code alone, for gradients of any size."""
    for terms, scale in product(TERMS, (1e-20, 1.0, 1e20)):
        grams = [gram_of(np.roll(conflicting(terms), step, axis=0) * scale).to(device) for step in range(4)]
        in_turn, in_torch = PCGrad(seed=2**62 - 1), PCGrad(seed=2**62 - 1)
        for step, gram in enumerate(grams):
            with weighing_with(None):
                expected = in_torch(gram, UNKNOWN)
            with weighing_with(kernel if step % 2 == 0 else None):
                check_weights(in_turn(gram, UNKNOWN), expected)
            assert in_turn.state_dict() == in_torch.state_dict()
    for first, both, second in ((1.0, -1e-170, 0.0), (torch.inf, -1.0, 2.0), (torch.nan, torch.nan, 1.0)):
        gram = torch.tensor([[first, both], [both, second]], dtype=torch.float64, device=device)
        with weighing_with(None):
            expected = PCGrad("mean", seed=0)(gram, UNKNOWN)
        with weighing_with(kernel):
            check_weights(PCGrad("mean", seed=0)(gram, UNKNOWN), expected)


def check_kernel(kernel: Kernel) -> None:
    """Check all of it with ``kernel``."""
    with weighing_with(kernel):
        check_algorithm()
    check_against_torch(kernel)


def check_weights(weights: Tensor, expected: Tensor) -> None:
    if not torch.allclose(weights, expected, rtol=1e-9, atol=1e-12):
        raise TooFar(f"the weights are {weights.tolist()}, not {expected.tolist()}")
