"""Gradients of several terms, [K, SPACE], for the tests of rules."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

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
