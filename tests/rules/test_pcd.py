"""PCD against SciPy: its program as a least distance problem (Lawson and Hanson, chapter 23)."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import nnls

from mtadam_fused.rules import PCD
from oracles.tolerances import TooFar
from tests.rules.gradients import (
    UNKNOWN,
    Array,
    conflicting,
    every_kind,
    every_number,
    gram_of,
    norms_of,
    opposite,
    random,
    weigh,
)


class Published:
    """PCD as the paper writes it, on vectors."""

    def __init__(self, tau: float, beta: float, eps: float, primary: int = 0) -> None:
        self.tau, self.beta, self.eps, self.primary = tau, beta, eps, primary
        self.average, self.steps = np.zeros(1), 0

    def step(self, g: Array) -> Array:
        self.steps += 1
        self.average = self.beta * self.average + (1 - self.beta) * norms_of(g) ** 2
        average = self.average / (1 - self.beta**self.steps)
        scales = (norms_of(g) > 0) / np.sqrt(np.maximum(average + self.eps, 1e-300))
        first = g[self.primary]
        scaled = g * scales[:, None] / np.linalg.norm(first * scales[self.primary])  # in lengths of the primary one
        others = np.delete(scaled, self.primary, axis=0)
        lengths = norms_of(others)
        others, lengths = others[lengths > 0], lengths[lengths > 0]
        units = others / lengths[:, None]
        moved = least_distance(units, self.tau * lengths - units @ scaled[self.primary])
        if moved is None:
            return first
        direction = scaled[self.primary] + moved
        return direction / np.linalg.norm(direction) * np.linalg.norm(first)


def least_distance(units: Array, needed: Array) -> Array | None:
    """Return the shortest vector with ``units @ vector >= needed``, or None."""
    if not len(units):
        return np.zeros(units.shape[1])
    system = np.vstack([units.T, needed])
    target = np.append(np.zeros(units.shape[1]), 1.0)
    residual = system @ nnls(system, target)[0] - target
    return None if np.linalg.norm(residual) < 1e-7 else -residual[:-1] / residual[-1]


def check(weights: Array, g: Array, expected: Array, primary: int = 0) -> None:
    """Raise TooFar unless the direction is the expected one, on the scale of the primary gradient."""
    length = np.linalg.norm(g[primary])
    rounding = 1e-9 * length + 1e-13 * np.abs(weights) @ norms_of(g)
    if not np.linalg.norm(weights @ g - expected) <= rounding:
        raise TooFar(f"{weights @ g} is not {expected}")


@pytest.mark.parametrize("tau", [0.02, 0.3])
@every_number
@every_kind
def test_pcd(make: Callable[[int], Array], terms: int, tau: float) -> None:
    for eps in (0.0, 1e-8):
        rule, published = PCD(tau=tau, beta=0.9, eps=eps), Published(tau, 0.9, eps)
        for step in range(3):
            g = make(terms) * (1 + step)
            check(weigh(rule, g), g, published.step(g))


@every_number
def test_what_is_guaranteed_is_given(terms: int) -> None:
    g = conflicting(terms)
    weights = weigh(PCD(tau=0.1, eps=0.0), g)
    direction = weights @ g
    units = g / norms_of(g)[:, None]
    if terms < 20:
        assert (units[1:] @ direction > 0).all()
        assert not (units[1:] @ g[0] > 0).all()
    assert np.linalg.norm(direction) == pytest.approx(np.linalg.norm(g[0]))


def test_faults_are_rejected() -> None:
    g = conflicting(5)
    for other in (Published(0.11, 0.9, 0.0), Published(0.1, 0.9, 0.0, primary=1), Published(0.1, 0.9, 1.0)):
        with pytest.raises(TooFar):
            check(weigh(PCD(tau=0.1, beta=0.9, eps=0.0), g), g, other.step(g))
    rule, other = PCD(tau=0.1, beta=0.9, eps=0.0), Published(0.1, 0.5, 0.0)
    check(weigh(rule, g), g, other.step(g))
    scaled = g * np.arange(1.0, 6.0)[:, None]
    with pytest.raises(TooFar):  # another decay shows in the second step
        check(weigh(rule, scaled), scaled, other.step(scaled))


def test_the_primary_term_is_found_by_name() -> None:
    g = conflicting(4)
    rule = PCD("c", tau=0.1, beta=0.9, eps=0.0)
    rule.check_terms("abcd", allow_more=False)
    check(rule(gram_of(g), UNKNOWN).numpy(), g, Published(0.1, 0.9, 0.0, primary=2).step(g), primary=2)
    with pytest.raises(ValueError, match="primary is 'c', and the terms are"):
        rule.check_terms("ab", allow_more=False)


def test_a_tau_for_each_term() -> None:
    g = conflicting(3)
    expected = weigh(PCD(tau=0.1), g)
    np.testing.assert_array_equal(weigh(PCD(tau={0: 0.9, 1: 0.1, 2: 0.1}), g), expected)
    assert not np.allclose(weigh(PCD(tau=[0.1, 0.1, 0.2]), g), expected)
    for tau in (-0.1, 1.1, [0.5, 2.0], "all", {"a": None}):
        with pytest.raises(ValueError, match="tau"):
            PCD(tau=tau)  # type: ignore[arg-type]


def test_an_absent_term_keeps_its_average() -> None:
    g, without = random(3), random(3)
    without[2] = 0.0
    rule, published = PCD(beta=0.5, eps=0.0), Published(0.02, 0.5, 0.0)
    weigh(rule, g)
    published.step(g)
    kept = published.average[2]
    for _ in range(3):
        assert weigh(rule, without)[2] == 0
    assert rule.state_dict()["averages"][2].item() == pytest.approx(kept)


def test_without_a_primary_gradient_nothing_moves() -> None:
    g = random(3)
    g[0] = 0.0
    assert (weigh(PCD(), g) == 0).all()
    assert weigh(PCD(), opposite(3)).tolist() == [1.0, 0.0, 0.0]  # the second and third cannot both be served
