"""Checks of a kernel that finds the point of least norm in a convex hull."""

from array import array
from itertools import product

import numpy as np
import torch

from mtadam_fused.rules.kernels import Kernel
from mtadam_fused.rules.min_norm import min_norm_weights
from tests.rules.gradients import MAKERS, badly_scaled, gram_of, random
from tests.support.rule_kernels import weighing_with


def check_min_norm(kernel: Kernel, device: str = "cpu") -> None:
    """Check the kernel against torch code: the same norm, and where one point alone has it the same weights."""
    calls = 0

    def counted(args: array) -> None:
        nonlocal calls
        calls += 1
        kernel(args)

    shifts = [*MAKERS, *(lambda terms, seed=seed: random(terms) + seed for seed in (0.2, 0.5, 1.0))]
    for make, terms, scale in product(shifts, range(1, 9), (1e-20, 1.0, 1e20)):
        gram = gram_of(make(terms) * scale).to(device)
        with weighing_with(None):
            expected = min_norm_weights(gram)
        with weighing_with(counted):
            weights = min_norm_weights(gram)
        assert (weights >= 0).all()
        np.testing.assert_allclose(float(weights.sum()), 1.0, rtol=1e-12)
        assert (weights[gram.diagonal() == 0] == 0).all()
        rounding = 1e-13 * float(weights @ gram.diagonal().sqrt()) ** 2
        assert abs(float(weights @ gram @ weights - expected @ gram @ expected)) <= rounding
        if make not in MAKERS or make in (random, badly_scaled):
            torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)
    assert calls == len(shifts) * 7 * 3  # one vector alone needs no kernel
    with weighing_with(kernel):
        for nothing in (0.0, torch.nan):
            assert not min_norm_weights(torch.full((3, 3), nothing, dtype=torch.float64, device=device)).any()
