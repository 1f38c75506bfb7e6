"""Checks of a kernel that finds eigenvalues."""

from itertools import product

import torch

from mtadam_fused.rules.eigen import symmetric_eigen
from mtadam_fused.rules.kernels import Kernel
from tests.rules.gradients import MAKERS, gram_of
from tests.support.rule_kernels import weighing_with


def check_eigen(kernel: Kernel, device: str = "cpu") -> None:
    """Check the kernel against torch code, and that it has found eigenvectors."""
    for make, size in product(MAKERS, (1, 2, 3, 5, 8, 20)):
        matrix = gram_of(make(size)).to(device)
        with weighing_with(None):
            expected, _, expected_null = symmetric_eigen(matrix)
        with weighing_with(kernel):
            values, vectors, is_null = symmetric_eigen(matrix)
        close = 1e-13 * float(matrix.abs().max())
        assert is_null.sum() == expected_null.sum()
        torch.testing.assert_close(values[~is_null].sort()[0], expected[~expected_null].sort()[0], rtol=1e-9, atol=0)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(size).to(matrix), rtol=0, atol=1e-13)
        torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=1e-13, atol=close)
    with weighing_with(kernel):
        values, _, is_null = symmetric_eigen(torch.full((3, 3), torch.nan, dtype=torch.float64, device=device))
    assert values.isnan().all()
    assert is_null.all()
