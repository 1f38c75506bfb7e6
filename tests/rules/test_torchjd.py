"""Rules beside those of TorchJD, where the definitions coincide; skipped where it is not installed (group `peers`)."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mtadam_fused.rules import IMTLG, MGDA, PCD, AlignedMTL, ConFIG, FairGrad, PCGrad, Rule, UPGrad
from oracles.tolerances import TooFar
from tests.rules.gradients import UNKNOWN, Array, badly_scaled, check_sum, conflicting, gram_of, random, weigh

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


def peer(name: str, *args: object, **options: object) -> Callable[[Tensor], Tensor]:
    """Return TorchJD's aggregator of that name, or skip where this version lacks it, or what it needs."""
    if not hasattr(aggregation, name):
        pytest.skip(f"this TorchJD has no {name}")
    try:
        return getattr(aggregation, name)(*args, **options)
    except ImportError as error:
        pytest.skip(str(error))


PAIRS: dict[str, tuple[Rule, tuple[object, ...], dict[str, object]]] = {
    "ConFIG": (ConFIG(), (), {}),
    "IMTLG": (IMTLG(), (), {}),
    "AlignedMTL": (AlignedMTL(), (), {}),
    "FairGrad": (FairGrad(2.0), (2.0,), {}),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("terms", [2, 3, 5, 8, 20])
def test_the_same_update(name: str, terms: int) -> None:
    rule, args, options = PAIRS[name]
    theirs = peer(name, *args, **options)
    for g in (random(terms), conflicting(terms)):
        expected = theirs(torch.from_numpy(g)).numpy()
        check_sum(weigh(rule, g), g, expected, 1e-9)
        with pytest.raises(TooFar):
            check_sum(weigh(rule, g), g, expected * 1.0001, 1e-9)


@pytest.mark.parametrize("terms", [2, 3, 5, 8])
def test_upgrad(terms: int) -> None:
    """TorchJD adds 1e-4 to the diagonal of the normalized matrix: the results differ by about as much."""
    theirs = peer("UPGrad")
    for g in (random(terms), random(terms) + 0.2):
        expected = theirs(torch.from_numpy(g)).numpy()
        check_sum(weigh(UPGrad(), g), g, expected, 1e-4)
        with pytest.raises(TooFar):
            check_sum(weigh(UPGrad(), g), g, expected * 1.02, 1e-4)


@pytest.mark.parametrize("make", [random, conflicting, badly_scaled])
@pytest.mark.parametrize("terms", [2, 3, 5, 8, 20])
def test_pcd(make: Callable[[int], Array], terms: int) -> None:
    ours, theirs = PCD(tau=0.1, beta=0.9), peer("PCD", tau=0.1, beta=0.9)
    for step in range(3):
        g = make(terms) * np.linspace(1, 1 + step, terms)[:, None]
        expected = theirs(torch.from_numpy(g)).numpy()
        assert np.linalg.norm(weigh(ours, g) @ g - expected) < 1e-9 * np.linalg.norm(g[0])
