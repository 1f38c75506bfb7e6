"""Eigenvalues and eigenvectors of small matrices of dot products, without a wait for the device."""

from array import array

import torch
from torch import Tensor

from . import kernels

SWEEPS = 6  # of Jacobi's method; five bring matrices of 8 x 8 to rounding
SWEEPS_AT_MOST = 12  # where the end can be looked at
NULL = 1e-12  # eigenvalues below this share of what they were taken from are rounding


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvalues, eigenvectors, and which of them belong to the null space, by Jacobi's method.

    torch.linalg.eigh waits for the device, and finds small eigenvalues only to the rounding of the largest. These are
    as precise as the cosines allow, whatever the vectors' lengths (Demmel and Veselić, "Jacobi's method is more
    accurate than QR", 1992).

    Args:
        matrix: ``[K, K]`` float64, positive semidefinite.

    Returns:
        ``[K]`` eigenvalues in no order, ``[K, K]`` with the eigenvectors as columns, and ``[K]`` bool.
    """
    kernel = kernels.kernel_for("symmetric_eigen", matrix)
    if kernel is None:
        return eigen_in_torch(matrix)
    matrix = matrix.contiguous()
    values, vectors = torch.empty_like(matrix[0]), torch.empty_like(matrix)
    is_null = torch.empty_like(values, dtype=torch.bool)
    kernel(array("q", [len(matrix), *(t.data_ptr() for t in (matrix, values, vectors, is_null))]))
    return values, vectors, is_null


def eigen_in_torch(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same without the kernel.

    A sweep turns each pair of coordinates once, as many pairs at a time as there are without overlap. On the CPU the
    sweeps end when nothing is left to turn.
    """
    numbers = torch.arange(len(matrix), device=matrix.device)
    unit = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    vectors, peaks = unit, matrix.diagonal()
    rounds = [(partners, numbers[:, None] == partners, numbers < partners) for partners in pairings(numbers)]
    can_look = matrix.device.type == "cpu"
    for _ in range(SWEEPS_AT_MOST if can_look else SWEEPS):
        for partners, is_pair, is_first in rounds:
            turn = rotation(matrix, partners, is_pair, is_first, unit)
            matrix = turn.T @ matrix @ turn
            vectors = vectors @ turn
            peaks = torch.maximum(peaks, matrix.diagonal())
        if can_look and is_diagonal(matrix, peaks):
            break
    values = matrix.diagonal()
    return values, vectors, ~(values > NULL * peaks)


def pairings(numbers: Tensor) -> list[Tensor]:
    """Return the rounds in which each of K coordinates meets each other once: ``[K]`` whom each one meets, or itself.

    In round r, i meets ``(r - i) % m``: the circle method of tournaments. With an even K, m is K - 1, and who would
    meet itself meets the last.
    """
    count = len(numbers)
    if count % 2:
        return [(r - numbers) % count for r in range(count)]
    m, last = count - 1, count - 1
    rounds = []
    for r in range(m):
        partners = (r - numbers) % m
        alone = partners == numbers
        meets_last = torch.where(alone & (numbers != last), numbers, 0).sum()
        partners = torch.where(alone, last, partners)
        rounds.append(torch.where(numbers == last, meets_last, partners))
    return rounds


def rotation(matrix: Tensor, partners: Tensor, is_pair: Tensor, is_first: Tensor, unit: Tensor) -> Tensor:
    """Return the ``[K, K]`` rotation that makes the entries of all pairs zero, by angles of at most 45 degrees.

    Args:
        matrix: ``[K, K]``.
        partners: ``[K]`` whom each coordinate meets; itself for none.
        is_pair: ``[K, K]`` bool, where in the columns the partners are.
        is_first: ``[K]`` bool, the one of a pair that turns in the positive sense if both are equal.
        unit: ``[K, K]``.
    """
    diagonal = matrix.diagonal()
    entries = matrix.gather(0, partners[None])[0]
    gaps = diagonal.index_select(0, partners) - diagonal
    # tan of the angle: 2 e / (gap + sign(gap) sqrt(gap**2 + 4 e**2)), 0 where e and gap are
    roots = torch.hypot(gaps, 2.0 * entries)
    below = torch.where((gaps > 0) | ((gaps == 0) & is_first), gaps + roots, gaps - roots)
    tangent = torch.where((below == 0) | is_pair.diagonal(), 0.0, 2.0 * entries / below)
    cosine = torch.rsqrt(1.0 + tangent**2)
    return unit * cosine - is_pair * (tangent * cosine)


def is_diagonal(matrix: Tensor, peaks: Tensor) -> bool:
    """Return whether no entry beside the diagonal is above rounding."""
    roots = peaks.sqrt()
    return bool((matrix - torch.diag(matrix.diagonal())).abs().le(1e-15 * roots * roots[:, None]).all())


def solve_least_norm(matrix: Tensor, right: Tensor) -> Tensor:
    """Return the pseudo-inverse of ``matrix`` times ``right``, ``[K]``; zeros where the result is but rounding."""
    values, vectors, is_null = symmetric_eigen(matrix)
    parts = torch.where(is_null, 0.0, vectors.T @ right)
    parts = torch.where(parts.abs() > 1e-12 * right.abs().sum(), parts, 0.0)
    return vectors @ (parts / torch.where(is_null, 1.0, values))
