"""ConFIG and IMTL-G against NumPy's pseudo-inverse of the unit gradients."""

from collections.abc import Callable

import numpy as np
import pytest

from mtadam_fused.rules import IMTLG, ConFIG
from oracles.tolerances import TooFar
from tests.rules.gradients import (
    Array,
    check_sum,
    colinear,
    conflicting,
    every_kind,
    every_number,
    norms_of,
    opposite,
    random,
    units_of,
    weigh,
)


def same_angles(g: Array, preference: Array | None = None) -> Array:
    """Return the shortest vector whose products with the unit gradients are the preference, in least squares."""
    present = norms_of(g) > 0
    wanted = (np.ones(len(g)) if preference is None else preference)[present]
    vector = np.linalg.pinv(units_of(g), rcond=1e-7) @ wanted
    return np.where(np.linalg.norm(vector) > 1e-10, 1.0, 0.0) * vector


def config(g: Array, preference: Array | None = None, lengths: Array | None = None) -> Array:
    """Return equation 2 of Liu, Chu and Thuerey."""
    direction = same_angles(g, preference)
    size = np.linalg.norm(direction)
    if size == 0:
        return direction
    return (g @ direction if lengths is None else lengths @ (g @ direction)).sum() / size**2 * direction


@every_number
@every_kind
def test_config(make: Callable[[int], Array], terms: int) -> None:
    g = make(terms)
    check_sum(weigh(ConFIG(), g), g, config(g), 1e-10)


@every_number
def test_config_of_a_preference(terms: int) -> None:
    g, p = conflicting(terms), np.arange(1.0, terms + 1)
    check_sum(weigh(ConFIG(preference=p.tolist()), g), g, config(g, p), 1e-10)
    with pytest.raises(TooFar):
        check_sum(weigh(ConFIG(), g), g, config(g, p), 1e-10)
    units = units_of(g)
    normalized = weigh(ConFIG(preference=p.tolist(), normalized=True), g)
    check_sum(normalized * norms_of(g), units, config(units, p), 1e-10)


@every_number
def test_config_shares_alike(terms: int) -> None:
    g = conflicting(terms)
    products = units_of(g) @ (weigh(ConFIG(), g) @ g)
    np.testing.assert_allclose(products, products.mean(), rtol=1e-9)
    assert products.mean() > 0


def test_config_of_two_is_dcgds_center() -> None:
    for seed in range(20):
        g = np.random.default_rng(seed).standard_normal((2, 5))
        center = units_of(g).sum(axis=0)
        center *= (g @ center).sum() / (center @ center)  # DCGD's projects the sum of the gradients on the center line
        check_sum(weigh(ConFIG(), g), g, center)


def check_impartial(weights: Array, g: Array) -> None:
    """Raise TooFar unless the weights have sum 1, and the update the same product with every unit gradient."""
    products = units_of(g) @ (weights @ g)
    rounding = 1e-9 * np.abs(products).mean() + 1e-13 * np.abs(weights) @ norms_of(g)
    if not np.abs(products - products.mean()).max() <= rounding or abs(weights.sum() - 1) > 1e-9:
        raise TooFar(f"the products are {products}, and the weights {weights} have sum {weights.sum()}")


@every_number
@every_kind
def test_imtlg(make: Callable[[int], Array], terms: int) -> None:
    g = make(terms)
    weights = weigh(IMTLG(), g)
    if make is opposite:  # no direction has the same product with both
        assert np.isfinite(weights).all()
        assert weights.sum() == pytest.approx(1 if terms % 2 else 0)
        return
    check_impartial(weights, g)
    if len(units_of(g)) > 1 and make is not colinear:  # any weights of colinear gradients are impartial
        for fault in (norms_of(g) > 0, weights * np.linspace(1.0, 1.001, terms)):
            with pytest.raises(TooFar):
                check_impartial(fault / fault.sum(), g)


@every_number
def test_imtlg_is_the_papers(terms: int) -> None:
    for make in (random, conflicting):
        g = make(terms)
        v = np.linalg.solve(g @ g.T, norms_of(g))
        np.testing.assert_allclose(weigh(IMTLG(), g), v / v.sum(), rtol=1e-8, atol=1e-12)


@every_number
def test_a_preference_sets_the_ratios_of_imtlg(terms: int) -> None:
    g, p = conflicting(terms), np.arange(1.0, terms + 1)
    weights = weigh(IMTLG(preference=p.tolist()), g)
    products = units_of(g) @ (weights @ g)
    np.testing.assert_allclose(products / products[0], p, rtol=1e-8)
    assert weights.sum() == pytest.approx(1)
