"""Aligned-MTL and its eigenvalues against mpmath, with 60 digits."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch

from mtadam_fused.rules import AlignedMTL
from mtadam_fused.rules.eigen import SWEEPS, eigen_in_torch, pairings, symmetric_eigen
from oracles.tolerances import TooFar
from tests.rules.gradients import (
    Array,
    badly_scaled,
    colinear,
    conflicting,
    every_kind,
    gram_of,
    norms_of,
    opposite,
    random,
    weigh,
)
from tests.support.eigen import check_eigen
from tests.support.rule_kernels import native_kernel

mpmath.mp.dps = 60


def eigen(g: Array) -> tuple[list[mpmath.mpf], mpmath.matrix]:
    vectors = mpmath.matrix(g.tolist())
    values, basis = mpmath.eigsy(vectors * vectors.T)
    return list(values), basis


def aligned(g: Array, rank: int, preference: Array | None = None) -> Array:
    """Return algorithm 1 of Senushkin et al., as coefficients of the unit gradients."""
    present = norms_of(g) > 0
    values, basis = eigen(g[present])
    largest = sorted(range(len(values)), key=lambda i: values[i])[-rank:]
    p = (np.ones(len(g)) if preference is None else preference)[present]
    right = mpmath.matrix((p / p.sum()).tolist())
    weights = mpmath.matrix(len(p), 1)
    for i in largest:
        weights += basis[:, i] * (basis[:, i].T * right)[0] * mpmath.sqrt(values[largest[0]] / values[i])
    result = np.zeros(len(g))
    result[present] = [float(w * n) for w, n in zip(weights, norms_of(g)[present], strict=True)]
    return result


def check(coefficients: Array, expected: Array) -> None:
    if not np.abs(coefficients - expected).max() <= 1e-8 * np.abs(expected).max():
        raise TooFar(f"{coefficients} is not {expected}")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("terms", [2, 3, 5, 8, 12])
@every_kind
def test_aligned_mtl(make: Callable[[int], Array], terms: int) -> None:
    g = make(terms)
    rank = 1 if make in (colinear, opposite) else int((norms_of(g) > 0).sum())
    weights = weigh(AlignedMTL(), g) * norms_of(g)
    check(weights, aligned(g, rank))
    with pytest.raises(TooFar):
        check(weights, aligned(g, rank) * (1 + 1e-6))


def test_a_preference() -> None:
    g, p = conflicting(4), np.array([1.0, 2.0, 0.0, 4.0])
    weights = weigh(AlignedMTL(preference=p.tolist()), g) * norms_of(g)
    check(weights, aligned(g, 4, p))
    for fault in (np.ones(4), p + np.array([0, 1e-6, 0, 0])):
        with pytest.raises(TooFar):
            check(weights, aligned(g, 4, fault))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 7, 8, 12])
def test_small_eigenvalues_are_as_precise_as_large_ones(terms: int) -> None:
    for make in (random, conflicting, badly_scaled):
        gram = gram_of(make(terms))
        values, vectors, is_null = symmetric_eigen(gram)
        exact = np.sort([float(value) for value in eigen(make(terms))[0]])
        assert not is_null.any()
        np.testing.assert_allclose(np.sort(values), exact, rtol=1e-11)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(terms, dtype=torch.float64), rtol=0, atol=1e-13)
        torch.testing.assert_close((vectors * values) @ vectors.T, gram, rtol=1e-13, atol=1e-13 * gram.max().item())
        if make is badly_scaled and terms > 2:  # why it is not torch's
            with pytest.raises(AssertionError):
                np.testing.assert_allclose(torch.linalg.eigvalsh(gram), exact, rtol=1e-2)


def test_the_device_makes_as_many_sweeps_as_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for terms in (2, 5, 8):
        for make in (random, conflicting, badly_scaled, colinear, opposite):
            gram = gram_of(make(terms))
            expected = eigen_in_torch(gram)[0]
            with monkeypatch.context() as patched:
                patched.setattr("mtadam_fused.rules.eigen.SWEEPS_AT_MOST", SWEEPS)
                patched.setattr("mtadam_fused.rules.eigen.is_diagonal", lambda *_: False)
                torch.testing.assert_close(
                    eigen_in_torch(gram)[0], expected, rtol=1e-11, atol=1e-11 * gram.max().item()
                )


def test_the_kernel_of_eigenvalues() -> None:
    check_eigen(native_kernel("symmetric_eigen"))


@pytest.mark.parametrize("terms", range(1, 14))
def test_pairings_bring_each_pair_together_once(terms: int) -> None:
    met = []
    for partners in pairings(torch.arange(terms)):
        assert torch.equal(partners[partners], torch.arange(terms))
        met += [(k, other) for k, other in enumerate(partners.tolist()) if k < other]
    assert sorted(met) == [(j, k) for j in range(terms) for k in range(j + 1, terms)]
