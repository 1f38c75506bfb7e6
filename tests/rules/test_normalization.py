"""GradientNormalization with an anchor, against the published loops that it stands for."""

import copy

import numpy as np
import pytest
import torch

from mtadam_fused.rules import GradientNormalization
from tests.rules.gradients import UNKNOWN, Array, gram_of, norms_of, random, with_zeros


def steps_of(rule: GradientNormalization, runs: list[Array], terms: str = "abc") -> Array:
    rule.check_terms(terms, allow_more=False)
    return np.stack([rule(gram_of(g), UNKNOWN).numpy() for g in runs])


RUNS = [random(3) * (1 + t) ** np.array([[1.0], [2.0], [0.5]]) for t in range(7)]


def test_vqgans_adaptive_weight() -> None:
    rule = GradientNormalization(
        anchor="nll", clamp=(0, 1e4), eps=1e-4, preference={"nll": 1.0, "discriminator": 0.8, "codebook": 1.0}
    )
    for scale in (1.0, 1e-6):
        g = RUNS[0] * np.array([[1.0], [scale], [1.0]])
        nll, discriminator = (torch.tensor(x) for x in (norms_of(g)[0], norms_of(g)[1]))
        weight = torch.clamp(nll / (discriminator + 1e-4), 0.0, 1e4) * 0.8
        rule.check_terms(["nll", "discriminator", "codebook"], allow_more=False)
        ours = rule(gram_of(g), UNKNOWN)
        assert ours[0] == 1.0
        assert ours[1].item() == pytest.approx(weight.item(), rel=1e-12)
        assert ours[1].item() != pytest.approx((nll / discriminator * 0.8).item(), rel=1e-9)  # eps and clamp are seen


@pytest.mark.parametrize("every", [1, 3])
def test_learning_rate_annealing_of_pinns(every: int) -> None:
    expected, weights = [], np.ones(3)
    for t, g in enumerate(RUNS):
        if t % every == 0:
            weights = 0.9 * weights + 0.1 * norms_of(g)[0] / norms_of(g)
            weights[0] = 1.0
        expected.append(weights)
    ours = steps_of(GradientNormalization(anchor="a", ema=0.9, every=every), RUNS)
    np.testing.assert_allclose(ours, np.stack(expected), rtol=1e-12)
    for ema, interval in ((0.8, every), (0.9, every + 1)):
        wrong = steps_of(GradientNormalization(anchor="a", ema=ema, every=interval), RUNS)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(wrong, np.stack(expected), rtol=1e-6)


def test_grad_norm_of_jaxpi() -> None:
    expected, weights = [], np.ones(3)
    for g in RUNS:
        weights = 0.9 * weights + 0.1 * norms_of(g).mean() / norms_of(g)
        expected.append(weights)
    np.testing.assert_allclose(
        steps_of(GradientNormalization(anchor="mean", ema=0.9), RUNS), np.stack(expected), rtol=1e-12
    )


def test_a_term_may_be_called_mean() -> None:
    rule = GradientNormalization(anchor="mean")
    rule.check_terms(["mean", "variance", "other"], allow_more=False)
    weights = rule(gram_of(RUNS[1]), UNKNOWN)
    np.testing.assert_allclose(weights, norms_of(RUNS[1])[0] / norms_of(RUNS[1]), rtol=1e-12)


def test_absent_gradients_keep_their_weights() -> None:
    without_b, without_a = RUNS[1].copy(), RUNS[1].copy()
    without_b[1] = without_a[0] = 0.0
    ours = steps_of(GradientNormalization(anchor="a", ema=0.5), [RUNS[0], without_b, without_a, RUNS[1]])
    assert np.isfinite(ours).all()
    assert ours[1][1] == ours[0][1] != ours[3][1]
    assert ours[1][2] != ours[0][2]
    np.testing.assert_array_equal(ours[2], ours[1])  # without the anchor there is nothing to compare with
    np.testing.assert_array_equal(steps_of(GradientNormalization(anchor="a"), [without_a]), np.ones((1, 3)))
    assert (steps_of(GradientNormalization(anchor="mean", ema=0.5), [0 * RUNS[0]]) == 1.0).all()
    assert np.isfinite(steps_of(GradientNormalization(anchor="b"), [with_zeros(3)])).all()


def test_an_infinite_gradient_does_not_stay() -> None:
    infinite = gram_of(RUNS[0])
    infinite[1, 1] = torch.inf
    rule = GradientNormalization(anchor="a", ema=0.5)
    rule.check_terms("abc", allow_more=False)
    rule(infinite, UNKNOWN)
    assert rule(gram_of(RUNS[0]), UNKNOWN).isfinite().all()


def test_its_state_is_saved() -> None:
    rule, other = (GradientNormalization(anchor="a", ema=0.5, every=2) for _ in range(2))
    steps_of(rule, RUNS[:3])
    saved = copy.deepcopy(rule.state_dict())
    other.load_state_dict(saved)
    np.testing.assert_array_equal(steps_of(other, RUNS[3:]), steps_of(rule, RUNS[3:]))
    assert saved["step"] == 3


@pytest.mark.parametrize(
    "options",
    [{"ema": 1.0}, {"ema": -0.1}, {"every": 0}, {"every": 1.5}, {"clamp": (2, 1)}, {"clamp": (0,)}, {"eps": -1.0}],
)
def test_arguments_are_checked(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        GradientNormalization(**options)


def test_an_unknown_anchor_is_an_error() -> None:
    rule = GradientNormalization(anchor="z")
    rule.check_terms("ab", allow_more=True)
    with pytest.raises(ValueError, match="anchor is 'z', and the terms are"):
        rule.check_terms("ab", allow_more=False)
