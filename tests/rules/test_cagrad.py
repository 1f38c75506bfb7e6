"""CAGrad by weak duality on the gradients themselves, and against SciPy's SLSQP."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize

from mtadam_fused.rules import MGDA, CAGrad
from oracles.tolerances import TooFar
from tests.rules.gradients import Array, badly_scaled, conflicting, every_kind, every_number, norms_of, random, weigh


def mean_of(g: Array, preference: Array | None = None) -> tuple[Array, Array]:
    p = (norms_of(g) > 0) * (1.0 if preference is None else preference)
    return p / p.sum(), p / p.sum() @ g


def bound(q: Array, g: Array, c: float, preference: Array | None = None) -> float:
    """Return what no direction in the ball can exceed in its least product with a gradient, for any q of the simplex.

    Some product is at most the mean of them, ``d @ x`` with ``x = q @ g``, and d is in the ball around g_0.
    """
    _, mean = mean_of(g, preference)
    return (q @ g) @ mean + c * np.linalg.norm(mean) * np.linalg.norm(q @ g)


def check_optimal(weights: Array, g: Array, c: float, preference: Array | None = None) -> None:
    """Raise TooFar unless the update is in the ball and reaches the bound of the q that the weights have."""
    p, mean = mean_of(g, preference)
    d = weights @ g
    rounding = np.abs(weights) @ norms_of(g)
    q = weights if np.linalg.norm(d) <= 1e-6 * rounding else weights - p  # no direction is better than none
    if not (q >= -1e-12 * weights).all() or not q.sum() > 1e-9 * weights.sum():
        raise TooFar(f"{q} has negative parts, or none")
    q = q.clip(0) / q.clip(0).sum()
    if not np.linalg.norm(d - mean) <= c * np.linalg.norm(mean) * (1 + 1e-9) + 1e-9 * np.linalg.norm(mean):
        raise TooFar(f"{d} is not within {c} of {mean}")
    least = bound(q, g, c, preference)
    missing = (least - g @ d)[norms_of(g) > 0]
    if not (missing <= 1e-8 * abs(least) + 1e-12 * (norms_of(g)[norms_of(g) > 0] * rounding)).all():
        raise TooFar(f"the products are {g @ d}, and {least} could be reached")


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0, 3.0])
@every_number
@every_kind
def test_cagrad(make: Callable[[int], Array], terms: int, c: float) -> None:
    g = make(terms)
    weights = weigh(CAGrad(c), g)
    check_optimal(weights, g, c)
    if c >= 1:
        products = g @ (weights @ g)
        assert (products >= -1e-9 * norms_of(g) * (weights @ norms_of(g))).all()


@pytest.mark.parametrize("c", [0.2, 0.5, 1.0])
@every_number
def test_cagrad_of_a_preference_and_of_unit_gradients(terms: int, c: float) -> None:
    g, p = random(terms) + 0.5, np.arange(terms, dtype=float)
    check_optimal(weigh(CAGrad(c, preference=p.tolist()), g), g, c, p)
    if c < 1:  # in a ball through 0 the mean does not matter where all products are the same
        with pytest.raises(TooFar):
            check_optimal(weigh(CAGrad(c), g), g, c, p)
    units = badly_scaled(terms) / norms_of(badly_scaled(terms))[:, None]
    check_optimal(weigh(CAGrad(c, normalized=True), badly_scaled(terms)) * norms_of(badly_scaled(terms)), units, c)


@pytest.mark.parametrize("terms", range(2, 9))
def test_cagrad_is_no_worse_than_slsqp(terms: int) -> None:
    for seed in range(10):
        draw = np.random.default_rng(seed)
        g = draw.standard_normal((terms, 6)) + draw.uniform(-1, 1)
        c = draw.uniform(0.1, 0.9)
        solved = minimize(
            bound,
            np.full(terms, 1 / terms),
            args=(g, c),
            bounds=[(0, 1)] * terms,
            constraints={"type": "eq", "fun": lambda q: q.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        p, _ = mean_of(g)
        q = weigh(CAGrad(c), g) - p
        assert bound(q / q.sum(), g, c) <= solved.fun + 1e-9


def test_faults_are_rejected() -> None:
    for terms in (2, 5, 8, 20):
        g = conflicting(terms)
        right = weigh(CAGrad(0.5), g)
        p, _ = mean_of(g)
        shifted = right + 1e-4 * (np.arange(terms) - (terms - 1) / 2) / terms
        for fault in (right / 1.25, weigh(CAGrad(0.51), g), weigh(MGDA(), g), p, shifted):
            with pytest.raises(TooFar):
                check_optimal(fault, g, 0.5)


def test_c_of_zero_is_the_mean() -> None:
    np.testing.assert_allclose(weigh(CAGrad(0), conflicting(4)), 0.25, rtol=1e-15)
    np.testing.assert_allclose(weigh(CAGrad(1e-12), conflicting(4)), 0.25, rtol=1e-9)
