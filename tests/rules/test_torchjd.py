"""Rules beside those of TorchJD, where the definitions coincide; skipped where it is not installed (group `peers`)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mtadam_fused.rules import MGDA, PCGrad
from tests.rules.gradients import UNKNOWN, conflicting, gram_of, random

aggregation = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")


@pytest.mark.parametrize("terms", range(2, 9))
def test_pcgrad(terms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = PCGrad(seed=4)
    gram = gram_of(conflicting(terms))
    orders = iter(rule.orders(terms))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randperm", lambda *_, **__: next(orders))  # the orders that ours takes
        theirs = aggregation.PCGradWeighting()(gram)
    ours = rule(gram, UNKNOWN)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    if terms > 2:
        assert not torch.allclose(rule(gram, UNKNOWN), theirs, rtol=1e-9)  # other orders, other weights


@pytest.mark.parametrize("terms", range(2, 9))
def test_mgda(terms: int) -> None:
    for g in (random(terms), conflicting(terms)):
        gram = gram_of(g)

        def square(weights: Tensor, gram: Tensor = gram) -> float:
            return float(weights @ gram @ weights)

        ours = MGDA()(gram, UNKNOWN)
        theirs = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=20_000)(gram)
        assert square(ours) <= square(theirs) * (1 + 1e-12)
        scale = np.square(g).sum(axis=1).min()
        assert square(theirs) - square(ours) < 1e-3 * scale  # plain Frank-Wolfe closes in slowly
        if terms == 2:  # and at once
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
