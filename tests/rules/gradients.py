"""Gradients of several terms, [K, SPACE], for the tests of rules."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mtadam_fused.rules import Rule
from oracles.tolerances import TooFar

Array = np.ndarray
UNKNOWN = torch.empty(0)  # losses, for the rules that do not look at them
SPACE = 20  # dimensions of the gradients


def random(terms: int) -> Array:
    return np.random.default_rng(terms).standard_normal((terms, SPACE))


def conflicting(terms: int) -> Array:
    """Most pairs at more than a right angle."""
    g = random(terms)
    return g - 1.2 * g.mean(axis=0)


def colinear(terms: int) -> Array:
    return np.outer(np.arange(1.0, terms + 1), random(2)[0])


def opposite(terms: int) -> Array:
    return np.outer((-1.0) ** np.arange(terms) * np.arange(1, terms + 1), random(2)[0])


def with_zeros(terms: int) -> Array:
    g = conflicting(terms)
    g[1::3] = 0.0
    return g


def badly_scaled(terms: int) -> Array:
    return conflicting(terms) * np.logspace(-8, 8, terms)[:, None]


MAKERS: tuple[Callable[[int], Array], ...] = (random, conflicting, colinear, opposite, with_zeros, badly_scaled)


def gram_of(g: Array) -> Tensor:
    return torch.from_numpy(g @ g.T)


def norms_of(g: Array) -> Array:
    return np.linalg.norm(g, axis=1)


def units_of(g: Array) -> Array:
    """Return the gradients at length 1, without those that are zero."""
    g = g[norms_of(g) > 0]
    return g / norms_of(g)[:, None]


def weigh(rule: Rule, g: Array, losses: Tensor = UNKNOWN) -> Array:
    rule.check_terms(range(len(g)), allow_more=False)
    return rule(gram_of(g), losses).numpy()


every_kind = pytest.mark.parametrize("make", MAKERS)
every_number = pytest.mark.parametrize("terms", [*range(2, 9), 20])  # of more than 8 on the host


def check_sum(weights: Array, g: Array, expected: Array, relative: float = 1e-12) -> None:
    """Raise TooFar unless the weighted gradients sum to ``expected``, to the rounding of what is summed."""
    slack = relative * (np.abs(weights) @ norms_of(g) + norms_of(g).sum())
    if not np.linalg.norm(weights @ g - expected) <= slack:
        raise TooFar(f"{weights @ g} is not {expected}, by {np.linalg.norm(weights @ g - expected)}; {slack} may be")
