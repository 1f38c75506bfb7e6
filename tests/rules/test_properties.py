"""What the rules on dot products promise, whatever they compute."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from mtadam_fused.rules import (
    MGDA,
    PCD,
    CAGrad,
    FairGrad,
    GradientNormalization,
    GradNorm,
    NashMTL,
    PCGrad,
    Rule,
    UPGrad,
)
from tests.rules.gradients import (
    MAKERS,
    UNKNOWN,
    Array,
    conflicting,
    every_kind,
    gram_of,
    norms_of,
    opposite,
    random,
    units_of,
    weigh,
)
from tests.support.rules import ON_GRAM

NORMALIZED = [name for name in ON_GRAM if name not in ("NashMTL", "PCD")]
every_rule = pytest.mark.parametrize("name", ON_GRAM)


def conflict(weights: Array, g: Array) -> float:
    """Return the least cosine of the update with a gradient, 0 at most, to the rounding of the sum."""
    d = weights @ g
    rounding = 1e-9 * np.abs(weights) @ norms_of(g)
    return min((units_of(g) @ d).min(initial=0.0) + rounding, 0.0) / max(np.linalg.norm(d), 1e-300)


@pytest.mark.parametrize("name", ["UPGrad", "ConFIG", "FairGrad", "NashMTL"])
@pytest.mark.parametrize("terms", [2, 3, 5, 8, 20])
def test_not_in_conflict(name: str, terms: int) -> None:
    for seed in range(10):
        draw = np.random.default_rng(seed)
        g = draw.standard_normal((terms, 24)) - 0.2 * draw.standard_normal(24)
        assert conflict(weigh(ON_GRAM[name](), g), g) == 0.0
    g = conflicting(terms) * np.arange(1, terms + 1)[:, None]
    assert conflict(weigh(ON_GRAM[name](), g), g) == 0.0
    if terms > 2:
        assert conflict(np.ones(terms), g) < 0.0


@every_rule
@pytest.mark.parametrize("terms", [2, 5, 8, 20])
def test_the_order_of_the_terms_does_not_matter(name: str, terms: int) -> None:
    order = np.random.default_rng(0).permutation(terms)
    for make in (random, conflicting):
        g = make(terms)
        shuffled = PCD(int(np.flatnonzero(order == 0)[0])) if name == "PCD" else ON_GRAM[name]()
        np.testing.assert_allclose(weigh(shuffled, g[order]), weigh(ON_GRAM[name](), g)[order], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["UPGrad", "ConFIG"])
@pytest.mark.parametrize("terms", [2, 5, 8, 20])
def test_linear_in_each_gradients_scale(name: str, terms: int) -> None:
    g, ones = conflicting(terms), np.ones(terms)
    first, second = np.random.default_rng(0).uniform(0.1, 10.0, (2, terms))

    def update(scales: Array) -> Array:
        return weigh(ON_GRAM[name](), scales[:, None] * g) @ (scales[:, None] * g)

    np.testing.assert_allclose(update(first + 2 * second), update(first) + 2 * update(second), rtol=1e-7, atol=1e-8)
    assert not np.allclose(weigh(MGDA(), first[:, None] * g) @ (first[:, None] * g), weigh(MGDA(), g) @ g)
    assert not np.allclose(update(first), update(ones))


@pytest.mark.parametrize("rule", [UPGrad(), CAGrad(1.0), FairGrad(1.0), NashMTL(), MGDA()], ids=repr)
@pytest.mark.parametrize("terms", [2, 4, 8, 20])
def test_stationary_points_stay(rule: Rule, terms: int) -> None:
    """Where a convex combination of the gradients is zero, no direction lowers all losses."""
    g = random(terms)
    g[-1] = -np.linspace(0.5, 2.0, terms - 1) @ g[:-1]
    for vectors in (g, opposite(terms)):
        weights = weigh(rule, vectors)
        assert np.linalg.norm(weights @ vectors) < 1e-3 * np.abs(weights) @ norms_of(vectors)
    assert np.linalg.norm(weigh(rule, conflicting(terms)) @ conflicting(terms)) > 1e-3


@every_rule
@every_kind
def test_absent_terms_change_nothing(name: str, make: Callable[[int], Array]) -> None:
    for terms in (2, 3, 7, 8):
        g = make(terms)
        padded = np.vstack([g, np.zeros((2, g.shape[1]))])  # more than eight terms go to the host's solvers
        weights, expected = weigh(ON_GRAM[name](), padded), weigh(ON_GRAM[name](), g)
        assert (weights[terms:] == 0).all()
        length = np.abs(expected) @ norms_of(g) + 1e-300
        assert np.linalg.norm(weights[:terms] @ g - expected @ g) < 1e-6 * length


@every_rule
@pytest.mark.parametrize("terms", [1, 2, 3, 8, 9, 20])
def test_finite_whatever_the_gradients(name: str, terms: int) -> None:
    kinds = [make(terms) for make in MAKERS]
    kinds += [0.0 * random(terms), 1e-150 * random(terms), 1e150 * random(terms)]
    nearly = random(1) + 1e-9 * random(terms)
    signs = (-1.0) ** np.arange(terms)[:, None]
    kinds += [nearly, nearly * signs, random(terms)[:, :2], np.round(random(terms)[:, :3])]
    for g in kinds:
        weights = weigh(ON_GRAM[name](), g)
        assert np.isfinite(weights).all(), g
        assert weights.shape == (terms,)
        assert (weights[norms_of(g) == 0] == 0).all()


@pytest.mark.parametrize("name", NORMALIZED)
@pytest.mark.parametrize("terms", [2, 5, 8, 20])
def test_normalized_is_the_rule_on_unit_gradients(name: str, terms: int) -> None:
    g = conflicting(terms) * np.arange(1, terms + 1)[:, None]
    units = g / norms_of(g)[:, None]
    weights = weigh(ON_GRAM[name](normalized=True), g)
    np.testing.assert_allclose(weights * norms_of(g), weigh(ON_GRAM[name](), units), rtol=1e-7)
    assert not np.allclose(weights, weigh(ON_GRAM[name](), g))


WITH_PREFERENCE: dict[str, Callable[..., Rule]] = {
    **{name: make for name, make in ON_GRAM.items() if name != "PCD"},
    **{"MGDA": MGDA, "GradNorm": GradNorm, "GradientNormalization": GradientNormalization},
    "PCGrad": lambda **options: PCGrad(seed=0, **options),
}


@pytest.mark.parametrize("name", WITH_PREFERENCE)
def test_a_preference_by_name_or_by_place(name: str) -> None:
    losses = torch.ones(3, dtype=torch.float64)
    results = []
    for preference in ({"b": 3.0, "a": 1.0, "c": 0.5}, [1.0, 3.0, 0.5], None, [1.0, 1.0, 1.0]):
        rule = WITH_PREFERENCE[name](preference=preference)
        rule.check_terms("abc", allow_more=False)
        results.append([rule(gram_of(conflicting(3)), losses) for _ in range(2)][1].clone())
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[2], results[3], rtol=1e-12, atol=0)
    assert not torch.allclose(results[0], results[2], rtol=1e-3)


@pytest.mark.parametrize("name", WITH_PREFERENCE)
def test_a_preference_is_checked(name: str) -> None:
    for preference in ([1.0, -1.0], {"a": 0.0}, [float("nan")], "abc"):
        with pytest.raises(ValueError, match="preference"):
            WITH_PREFERENCE[name](preference=preference)
    rule = WITH_PREFERENCE[name](preference={"a": 1.0})
    with pytest.raises(ValueError, match="unknown term 'b': preference names"):
        rule.check_terms("ab", allow_more=False)
    rule = WITH_PREFERENCE[name](preference=[1.0, 2.0])
    with pytest.raises(ValueError, match="check_terms"):
        rule(gram_of(random(2)), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", [*WITH_PREFERENCE, "PCD"])
def test_parameters_are_those_of_the_rule(name: str) -> None:
    layer = nn.Linear(2, 2)
    make = {**WITH_PREFERENCE, "PCD": PCD}[name]
    assert make().parameters is None
    assert make(parameters=layer.weight).parameters == [layer.weight]
    given = make(parameters=layer.parameters()).parameters
    assert given is not None
    assert [id(p) for p in given] == [id(p) for p in layer.parameters()]
    with pytest.raises(ValueError, match="parameters is empty"):
        make(parameters=[])
    with pytest.raises(TypeError, match="parameters is a Linear; pass tensors, such as the parameters"):
        make(parameters=layer)


@pytest.mark.parametrize("name", [*WITH_PREFERENCE, "PCD"])
def test_dot_products_are_a_square(name: str) -> None:
    rule = {**WITH_PREFERENCE, "PCD": PCD}[name]()
    for shape in ((4, 3), (3, 5), (5,), (8, 1)):
        with pytest.raises(ValueError, match=r"gram has shape .*; it must be \[K, K\]"):
            rule(torch.ones(shape, dtype=torch.float64), torch.ones(shape[0], dtype=torch.float64))


def test_a_preference_of_mgda_and_pcgrad() -> None:
    g, p = conflicting(3), np.array([1.0, 3.0, 0.5])
    scaled = weigh(MGDA(), g * p[:, None]) * p
    np.testing.assert_allclose(weigh(MGDA(preference=p.tolist()), g), scaled, rtol=1e-12)
    each = [weigh(PCGrad(seed=1, preference=np.eye(3)[k].tolist()), g) for k in range(3)]
    np.testing.assert_allclose(weigh(PCGrad(seed=1, preference=p.tolist()), g), p @ np.stack(each), rtol=1e-12)


def test_a_preference_of_gradnorm_is_reached() -> None:
    rule = GradNorm(alpha=0.0, lr=2e-3, preference=[1.0, 3.0])
    g, losses = random(2), torch.ones(2, dtype=torch.float64)
    rule.check_terms("ab", allow_more=False)
    for _ in range(4000):
        weights = rule(gram_of(g), losses)
    sizes = weights.numpy() * norms_of(g)
    assert sizes[1] / sizes[0] == pytest.approx(3.0, rel=0.05)


def test_a_rule_without_our_constructor_has_no_preference() -> None:
    class Loudest(Rule):
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
            return self.preference_like(gram[0])

    rule = Loudest()
    rule.check_terms("ab", allow_more=False)
    assert rule(gram_of(random(2)), UNKNOWN).tolist() == [1.0, 1.0]
    assert (rule.preference, rule.parameters, repr(rule)) == (None, None, "Loudest()")
