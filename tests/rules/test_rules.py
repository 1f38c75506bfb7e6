"""The rules of CombinedAdam against the papers' definitions, written out on the gradients themselves in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from mtadam_fused.rules import MGDA, FixedWeights, GradientNormalization, GradNorm, PCGrad, kernels
from oracles.tolerances import TooFar
from tests.rules.gradients import (
    SPACE,
    UNKNOWN,
    Array,
    badly_scaled,
    conflicting,
    every_kind,
    gram_of,
    random,
)
from tests.support.min_norm import check_min_norm
from tests.support.rule_kernels import native_kernel

TERMS = range(2, 9)
every_number = pytest.mark.parametrize("terms", TERMS)


def losses_of(terms: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 10.0, terms))


# -- MGDA --------------------------------------------------------------------------------------------------------------


def check_least(g: Array, weights: Array, relative: float = 1e-6) -> None:
    """Raise TooFar unless no vector goes against the point ``weights @ g``: its duality gap is small.

    The gap, the point's square less its least product with any vector, is 0 at the least point alone.
    """
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    point = weights @ g
    norms = np.linalg.norm(g, axis=1)
    alive = norms > 0
    # What rounding leaves of a product with a long vector, when the weighted vectors all but cancel.
    rounding = 1e-13 * norms * (weights @ norms)
    excess = point @ point - g @ point - relative * (point @ point) - rounding
    if (excess[alive] > 0).any():
        raise TooFar(f"the weights {weights} leave a duality gap of {(point @ point - g @ point)[alive].max()}")


def by_quadratic_programming(g: Array) -> float:
    """Return the least square of a point of the hull, by scipy."""
    gram = g @ g.T
    count = len(g)
    solved = minimize(
        lambda w: w @ gram @ w,
        np.full(count, 1 / count),
        jac=lambda w: 2 * gram @ w,
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return solved.fun


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("terms", [1, *TERMS, 9, 12, 40])
@every_kind
def test_mgda(make: Callable[[int], Array], terms: int) -> None:
    g = make(terms)
    weights = MGDA()(gram_of(g), UNKNOWN).numpy()
    check_least(g, weights)
    assert (weights[np.linalg.norm(g, axis=1) == 0] == 0).all()
    if make is not badly_scaled:  # scipy's solver gives up there; the gap above is proof enough
        alive = g[np.linalg.norm(g, axis=1) > 0]
        scale = np.square(alive).sum(axis=1).min()
        assert np.square(weights @ g).sum() <= by_quadratic_programming(alive) + 1e-8 * scale


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("terms", [2, 5, 8, 12])
def test_many_hulls(terms: int) -> None:
    for seed in range(60):
        draw = np.random.default_rng(seed)
        rank = draw.integers(1, terms + 2)
        g = draw.standard_normal((terms, rank)) @ draw.standard_normal((rank, SPACE)) + draw.uniform(-1, 2)
        check_least(g, MGDA()(gram_of(g), UNKNOWN).numpy())


@pytest.mark.parametrize("terms", [9, 25, 40])
def test_badly_scaled_hulls_of_more_vectors_than_dimensions(terms: int) -> None:
    for seed in range(20):
        g = np.random.default_rng(seed).standard_normal((terms, SPACE)) * np.logspace(-8, 8, terms)[:, None]
        check_least(g, MGDA()(gram_of(g), UNKNOWN).numpy())


@pytest.mark.usefixtures("way")
def test_two_terms_by_the_closed_form() -> None:
    for seed in range(20):
        g = np.random.default_rng(seed).standard_normal((2, 3)) + seed % 3
        first = np.clip((g[1] - g[0]) @ g[1] / np.square(g[0] - g[1]).sum(), 0, 1)
        np.testing.assert_allclose(MGDA()(gram_of(g), UNKNOWN), [first, 1 - first], rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalization", ["none", "l2", "loss", "loss+"])
def test_one_term_needs_no_system(normalization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def solve_ex(*_: Tensor) -> None:
        raise AssertionError("solved")

    monkeypatch.setattr(torch.linalg, "solve_ex", solve_ex)
    monkeypatch.setattr(kernels, "kernel_for", lambda *_: None)
    losses = losses_of(1)
    divisor = {"none": 1.0, "l2": 2.0, "loss": losses.item(), "loss+": 2.0 * losses.item()}[normalization]
    four = torch.tensor([[4.0]], dtype=torch.float64)
    assert MGDA(normalization)(four, losses).item() == pytest.approx(1 / divisor)
    assert MGDA(normalization)(0 * four, losses).item() == 0.0
    with pytest.raises(AssertionError, match="solved"):
        MGDA(normalization)(gram_of(random(2)), losses_of(2))


def test_the_kernel_of_the_point_of_least_norm() -> None:
    check_min_norm(native_kernel("min_norm"))


def test_mgda_rejects_one_step_of_frank_wolfe() -> None:
    for terms in range(3, 9):
        g = conflicting(terms)
        gram = g @ g.T
        weights = np.full(terms, 1 / terms)
        corner = np.eye(terms)[(gram @ weights).argmin()]
        a, b, c = weights @ gram @ weights, weights @ gram @ corner, corner @ gram @ corner
        weights += np.clip((a - b) / (a + c - 2 * b), 0, 1) * (corner - weights)
        with pytest.raises(TooFar):
            check_least(g, weights)


@pytest.mark.usefixtures("way")
@every_kind
def test_mgda_normalizations(make: Callable[[int], Array]) -> None:
    g, losses = make(4), losses_of(4)
    norms = np.linalg.norm(g, axis=1)
    of = {"l2": norms, "loss": losses.numpy(), "loss+": norms * losses.numpy()}
    for name, divisor in of.items():
        divisor = np.where(norms > 0, divisor, 1.0)
        weights = MGDA(name)(gram_of(g), losses).numpy()
        check_least(g / divisor[:, None], weights * divisor)


@pytest.mark.usefixtures("way")
def test_all_gradients_zero() -> None:
    for terms in (3, 9):
        nothing = torch.zeros(terms, terms, dtype=torch.float64)
        assert MGDA()(nothing, UNKNOWN).tolist() == [0.0] * terms
        assert PCGrad()(nothing, UNKNOWN).tolist() == [1.0] * terms
        assert GradientNormalization()(nothing, UNKNOWN).tolist() == [1.0] * terms
        assert GradNorm()(nothing, torch.ones(terms, dtype=torch.float64)).tolist() == [1.0] * terms


# -- GradNorm and gradient normalization -------------------------------------------------------------------------------


def gradnorm_steps(runs: list[tuple[Array, Tensor]], alpha: float, lr: float, sign: float = 1.0) -> Tensor:
    """Weights after some steps, from autograd of the balancing loss (Chen et al., algorithm 1)."""
    weights = torch.ones(len(runs[0][0]), dtype=torch.float64)
    for g, losses in runs:
        ratios = losses / runs[0][1]
        rates = ratios / ratios.mean()
        weights.requires_grad_()
        sizes = torch.stack(
            [torch.linalg.vector_norm(w * torch.from_numpy(x)) for w, x in zip(weights, g, strict=True)]
        )
        targets = (sizes.mean() * rates ** (sign * alpha)).detach()
        (gradient,) = torch.autograd.grad((sizes - targets).abs().sum(), weights)
        moved = (weights.detach() - lr * gradient).clamp(min=1e-3)
        weights = moved * len(moved) / moved.sum()
    return weights


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
@every_number
def test_gradnorm(terms: int, alpha: float) -> None:
    runs = [(random(terms) * (1 + t), losses_of(terms, t)) for t in range(4)]
    rule = GradNorm(alpha=alpha, lr=0.01)
    for g, losses in runs:
        rule(gram_of(g), losses)
    weights = rule(gram_of(runs[0][0]), runs[0][1])  # those that the four steps before it have learnt
    np.testing.assert_allclose(weights, gradnorm_steps(runs, alpha, 0.01), rtol=1e-12)
    assert weights.sum().item() == pytest.approx(terms)
    if alpha:
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(weights, gradnorm_steps(runs, alpha, 0.01, sign=-1.0), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_gradnorm_stays_positive(scale: float) -> None:
    runs = [(random(3) * scale, losses_of(3, t)) for t in range(4)]
    rule = GradNorm()
    for g, losses in runs:
        weights = rule(gram_of(g), losses)
        assert (weights > 0).all()
    np.testing.assert_allclose(rule(*[gram_of(runs[0][0]), runs[0][1]]), gradnorm_steps(runs, 1.5, 0.025), rtol=1e-9)


def test_gradnorm_survives_a_dot_product_that_overflows() -> None:
    rule = GradNorm()
    losses = torch.ones(2, dtype=torch.float64)
    for largest in (torch.inf, 4.0):
        weights = rule(torch.tensor([[largest, 0.0], [0.0, 1.0]], dtype=torch.float64), losses)
        assert weights.tolist() == [1.0, 1.0]
    assert rule(torch.eye(2, dtype=torch.float64), losses).isfinite().all()


def test_gradnorm_gives_a_slow_term_more_weight() -> None:
    rule = GradNorm(lr=0.01)
    gram = torch.eye(2, dtype=torch.float64)
    for t in range(5):
        weights = rule(gram, torch.tensor([1.0, 0.7**t], dtype=torch.float64))  # the first does not train at all
    assert weights[0] > 1 > weights[1]


def test_gradnorm_leaves_absent_terms_out() -> None:
    rule, without = GradNorm(lr=0.01), GradNorm(lr=0.01)
    g = random(3)
    for t in range(3):
        losses = losses_of(3, t)
        losses[1] = torch.nan
        gram = gram_of(g * np.array([[1.0], [0.0], [1.0]]))
        weights = rule(gram, losses)
        expected = without(gram_of(g[[0, 2]]), losses[[0, 2]])
    assert weights.isfinite().all()
    assert (weights[0] / weights[2]).item() == pytest.approx((expected[0] / expected[1]).item())
    assert losses_of(3)[1] > 0
    rule(gram_of(g), losses_of(3))  # and takes them in when they come
    assert rule.state_dict()["initial_losses"][1] == losses_of(3)[1]


def test_new_terms_start_at_weight_one() -> None:
    rule = GradNorm()
    rule(gram_of(random(2)), losses_of(2))
    weights = rule(gram_of(random(3)), losses_of(3))
    assert weights[2] == 1.0


@every_number
@every_kind
def test_gradient_normalization(make: Callable[[int], Array], terms: int) -> None:
    g = make(terms)
    norms = np.linalg.norm(g, axis=1)
    expected = np.where(norms > 0, 1 / np.where(norms > 0, norms, 1.0), 1.0)
    np.testing.assert_allclose(GradientNormalization()(gram_of(g), UNKNOWN), expected, rtol=1e-7)
    rule = GradientNormalization(alpha=0.7)
    first, second = losses_of(terms, 1), losses_of(terms, 2)
    rule(gram_of(g), first)
    ratios = second.numpy() / first.numpy()
    favored = np.where(norms > 0, expected * (ratios / ratios.mean()) ** 0.7, 1.0)
    np.testing.assert_allclose(rule(gram_of(g), second), favored, rtol=1e-7)
    if norms[0] > 0:
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(rule(gram_of(g), second), favored * 1.001, rtol=1e-7)


# -- fixed weights -----------------------------------------------------------------------------------------------------


def test_fixed_weights_by_name() -> None:
    rule = FixedWeights({"a": 2.0, "b": 3.0})
    rule.check_terms(["b", "a"], allow_more=False)
    assert rule(torch.eye(2), torch.ones(2)).tolist() == [3.0, 2.0]
    rule.check_terms(["a", "b"], allow_more=False)
    assert rule(torch.eye(2), torch.ones(2)).tolist() == [2.0, 3.0]
