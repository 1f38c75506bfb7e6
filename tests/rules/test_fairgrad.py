"""FairGrad and Nash-MTL: the papers' equation, and the utility that it comes from, by autograd."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mtadam_fused.rules import FairGrad, NashMTL
from mtadam_fused.rules.fairgrad import STEPS
from oracles.tolerances import TooFar
from tests.rules.gradients import (
    Array,
    badly_scaled,
    conflicting,
    every_kind,
    every_number,
    norms_of,
    opposite,
    random,
    weigh,
)


def check_fair(weights: Array, g: Array, alpha: float, preference: Array | None = None) -> None:
    """Raise TooFar unless ``G w = (w / p)**(-1 / alpha)``, to the rounding of the sums."""
    present = norms_of(g) > 0
    p = np.ones(len(g)) if preference is None else preference
    products = (g @ (weights @ g))[present & (p > 0)]
    weights, norms, p = (x[present & (p > 0)] for x in (weights, norms_of(g), p))
    if not (weights > 0).all():
        raise TooFar(f"weights {weights} are not all positive")
    expected = (weights / p) ** (-1 / alpha)
    if not (np.abs(products - expected) <= 1e-8 * expected + 1e-12 * norms * (weights @ norms)).all():
        raise TooFar(f"{products} is not {expected}")


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@every_number
@every_kind
def test_fairgrad(make: Callable[[int], Array], terms: int, alpha: float) -> None:
    g = make(terms)
    weights = weigh(FairGrad(alpha), g)
    if make is opposite:  # no direction lowers all losses
        assert (weights > 0).all()
        assert (weights * norms_of(g) < 1e5).all()
        assert np.linalg.norm(weights @ g) < 1e-5 * weights @ norms_of(g)
        return
    check_fair(weights, g, alpha)
    if make is badly_scaled:  # there rounding hides small faults
        return
    for fault in (weights * 1.0001, weigh(FairGrad(alpha * 1.001), g)):
        with pytest.raises(TooFar):
            check_fair(fault, g, alpha)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@every_number
def test_the_direction_is_that_of_the_utility(terms: int, alpha: float) -> None:
    """In a ball, the best direction is along the gradient of the utility there."""
    g = torch.from_numpy(conflicting(terms))
    d = (torch.from_numpy(weigh(FairGrad(alpha), g.numpy())) @ g).requires_grad_()
    progress = g @ d
    utility = progress.log().sum() if alpha == 1 else (progress ** (1 - alpha) / (1 - alpha)).sum()
    (gradient,) = torch.autograd.grad(utility, d)
    torch.testing.assert_close(gradient, d.detach(), rtol=1e-6, atol=1e-8)


@every_number
def test_a_preference_weights_the_utility(terms: int) -> None:
    g, p = conflicting(terms), np.arange(terms, dtype=float)
    for alpha in (0.5, 1.0, 2.0):
        weights = weigh(FairGrad(alpha, preference=p.tolist()), g)
        assert weights[0] == 0
        check_fair(weights, g, alpha, p)
        with pytest.raises(TooFar):
            check_fair(weights, g, alpha, p + 0.01 * (p > 0))


@every_number
@every_kind
def test_nash_mtl(make: Callable[[int], Array], terms: int) -> None:
    g = make(terms)
    np.testing.assert_array_equal(weigh(NashMTL(), g), weigh(FairGrad(1.0), g))
    if make is not opposite:
        scales = np.logspace(-3, 3, terms)
        np.testing.assert_allclose(  # the losses' scales do not matter
            weigh(NashMTL(), g * scales[:, None]) * scales, weigh(NashMTL(), g), rtol=1e-7
        )


def test_alpha_is_checked() -> None:
    for alpha in (0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="alpha is"):
            FairGrad(alpha)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_device_makes_as_many_steps_as_are_needed(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtadam_fused.rules.fairgrad.STEPS_AT_MOST", STEPS)
    for terms in (2, 5, 8):
        for make in (random, conflicting, badly_scaled):
            g = make(terms)
            check_fair(weigh(FairGrad(alpha), g), g, alpha)
    monkeypatch.setattr("mtadam_fused.rules.fairgrad.STEPS_AT_MOST", 3)
    with pytest.raises(TooFar):
        check_fair(weigh(FairGrad(alpha), g), g, alpha)
