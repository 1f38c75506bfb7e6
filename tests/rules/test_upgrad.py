"""UPGrad against SciPy's nonnegative least squares on the gradients themselves."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import nnls

from mtadam_fused.rules import UPGrad
from oracles.tolerances import TooFar
from tests.rules.gradients import (
    Array,
    check_sum,
    conflicting,
    every_kind,
    every_number,
    norms_of,
    random,
    units_of,
    weigh,
)


def projected(g: Array, k: int) -> Array:
    """Return gradient k projected on the dual cone: the nearest vector with no negative product with a gradient.

    By Moreau, it is the gradient plus the projection of its negative on the cone of all gradients.
    """
    length = np.linalg.norm(g[k])
    if length == 0:
        return g[k]
    units = units_of(g)
    added, _ = nnls(units.T, -g[k] / length)
    return g[k] + length * added @ units


def weights_of_one(g: Array, k: int) -> Array:
    return weigh(UPGrad(preference=np.eye(len(g))[k].tolist()), g)


@every_number
@every_kind
def test_each_gradient_is_projected(make: Callable[[int], Array], terms: int) -> None:
    g = make(terms)
    alone = np.stack([weights_of_one(g, k) for k in range(terms)])
    for k in map(int, np.flatnonzero(norms_of(g))):  # one by one, so that long gradients do not hide short ones
        check_sum(alone[k] / norms_of(g)[k] * norms_of(g), units_with_zeros(g), projected(g, k) / norms_of(g)[k], 1e-8)
    present = norms_of(g) > 0
    np.testing.assert_allclose(weigh(UPGrad(), g), alone[present].mean(axis=0), rtol=1e-12, atol=0)


def units_with_zeros(g: Array) -> Array:
    return g / np.where(norms_of(g) > 0, norms_of(g), 1.0)[:, None]


@every_number
def test_a_preference_weights_the_projections(terms: int) -> None:
    g = conflicting(terms)
    p = np.arange(terms, dtype=float)
    expected = p / p.sum() @ np.stack([projected(g, k) for k in range(terms)])
    check_sum(weigh(UPGrad(preference=p.tolist()), g), g, expected, 1e-9)
    with pytest.raises(TooFar):
        check_sum(weigh(UPGrad(), g), g, expected, 1e-9)


@every_number
def test_wrong_projections_are_rejected(terms: int) -> None:
    for g, fault in ((conflicting(terms), regularized), (random(terms) + 0.5, unclipped)):
        units = units_of(g)
        expected = np.stack([projected(units, k) for k in range(terms)]).mean(axis=0)
        wrong = np.stack([fault(units, k) for k in range(terms)]).mean(axis=0)
        with pytest.raises(TooFar):
            check_sum(wrong, units, expected, 1e-8)


def regularized(units: Array, k: int) -> Array:
    """Return weights as of code that adds 1e-4 to the diagonal of G."""
    unit = np.eye(len(units))
    return unit[k] + nnls(np.vstack([units.T, 1e-2 * unit]), np.append(-units[k], -1e-2 * unit[k]))[0]


def unclipped(units: Array, k: int) -> Array:
    """Return weights that make all products with other gradients zero, also the positive ones."""
    others = np.arange(len(units)) != k
    weights = np.eye(len(units))[k]
    weights[others] = np.linalg.lstsq(units[others].T, -units[k], rcond=None)[0]
    return weights
