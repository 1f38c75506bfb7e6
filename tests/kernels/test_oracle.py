"""The float64 oracle itself: numbers worked out by hand, and torch.optim.Adam where the rule comes down to it."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oracles.numpy_oracle import Parameter, remember, step

GRADS = {0: np.array([3.0, 4.0]), 1: np.array([0.0, 20.0])}  # of norm 5 and 20


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        *[("average", [2.0, 3.0, 2.0]), ("corrected", [2.0, 10 / 3, 2.0])],
        *[("peak", [2.0, 4.0, 4.0]), ("decaying_peak", [2.0, 4.0, 2.0])],
    ],
)
def test_running_norms_by_hand(norms: str, expected: list[float]) -> None:
    found = [remember([2.0, 4.0, 1.0][:t], 0.5, norms) for t in (1, 2, 3)]
    assert found == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("b3", [0.0, 0.9, 0.999])
def test_corrected_norms_with_gaps_are_those_of_the_recursion(b3: float) -> None:
    """One term is there from the start, one comes later; each misses steps."""
    x, expected = Parameter(np.zeros(2)), dict.fromkeys((0, 1), np.nan)
    random = np.random.default_rng(0)
    for t in range(1, 30):
        present = [k for k in (0, 1) if (t + k) % 3 and t > 4 * k] or [0]
        grads = {k: random.standard_normal(2) * 10.0 ** (t % 4) for k in present}
        step(x, grads, betas=(0.9, 0.999, b3), norms="corrected")
        d = b3 * (1 - b3 ** (t - 1)) / (1 - b3**t)
        for k, g in grads.items():
            n = float(np.linalg.norm(g))
            expected[k] = n if np.isnan(expected[k]) else d * expected[k] + (1 - d) * n
        assert x.ema == pytest.approx({k: e for k, e in expected.items() if not np.isnan(e)}, rel=1e-12)


@pytest.mark.parametrize(
    ("anchor", "expected"),
    [
        ("first", {0: 1.0, 1: 0.25}),
        ("none", {0: 0.2, 1: 0.05}),
        ("geometric_mean", {0: 2.0, 1: 0.5}),
        (1, {0: 4.0, 1: 1.0}),
        (2, {0: 2.0, 1: 0.5}),  # which is absent
    ],
)
def test_scales_by_hand(anchor: Any, expected: dict[int, float]) -> None:
    for weights in ({0: 1.0, 1: 1.0}, {0: 3.0, 1: 0.5}):
        x = Parameter(np.zeros(2))
        step(x, GRADS, anchor=anchor, weights=weights)
        assert x.scale == pytest.approx({k: weights[k] * scale for k, scale in expected.items()}, rel=1e-15)


@pytest.mark.parametrize("term", [0, 1])
def test_a_term_of_zeros_is_neither_anchor_nor_scaled(term: int) -> None:
    x = Parameter(np.zeros(2))
    step(x, GRADS | {term: np.zeros(2)}, anchor="geometric_mean")
    assert x.scale == pytest.approx({0: 1.0, 1: 1.0}, rel=1e-15)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("amsgrad", "maximize", "decoupled"), list(product((False, True), repeat=3)))
def test_adam(amsgrad: bool, maximize: bool, decoupled: bool, shared: bool) -> None:
    """With one term; and with two of one second moment, which is Adam on their balanced sum."""
    random = np.random.default_rng(0)
    start = random.standard_normal(5)
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "amsgrad": amsgrad, "maximize": maximize}
    p = nn.Parameter(torch.from_numpy(start.copy()))
    adam = (torch.optim.AdamW if decoupled else torch.optim.Adam)([p], **options)
    x = Parameter(start)
    choices: dict[str, Any] = (
        {"anchor": "none", "second_moments": "shared", "betas": (0.9, 0.999, 0.0)} if shared else {}
    )
    for t in range(10):
        grads = {k: 10.0**k * random.standard_normal(5) for k in range(2 if shared and t % 3 else 1)}
        step(x, grads, **options, **choices, decoupled_weight_decay=decoupled)
        p.grad = torch.from_numpy(sum(g / np.linalg.norm(g) for g in grads.values()) if shared else grads[0])
        adam.step()
        np.testing.assert_allclose(x.value, p.detach().numpy(), rtol=1e-12, atol=1e-12)
