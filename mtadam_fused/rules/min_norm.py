"""The point of least norm in the convex hull of K vectors, from their dot products."""

from array import array

import torch
from torch import Tensor

from . import kernels
from .supports import EXHAUSTIVE, all_supports, masked, solve, walk
from .unit_gram import UnitGram


def min_norm_weights(gram: Tensor) -> Tensor:
    """Return the weights ``[K]``, at least 0 and of sum 1, that minimize ``weights @ gram @ weights``.

    The least point is a combination of an affinely independent set of the vectors, the support, and there the solution
    of a linear system. Up to eight vectors the systems of all sets are solved at once, on the device; of more, only
    those along Wolfe's path ("Finding the nearest point in a polytope", 1976), on the host. Vectors that are zero get
    weight 0.

    Args:
        gram: ``[K, K]`` float64, of any scale from vector to vector.
    """
    if len(gram) == 1:
        return (gram[0] > 0).to(gram.dtype)
    if len(gram) > EXHAUSTIVE:
        unit = UnitGram.of(gram.cpu())
        return (wolfe(unit) * unit.inverse).to(gram.device)
    kernel = kernels.kernel_for("min_norm", gram)
    if kernel is not None:
        gram = gram.contiguous()
        weights = gram.new_empty(len(gram))
        kernel(array("q", [len(gram), gram.data_ptr(), weights.data_ptr()]))
        return weights
    unit = UnitGram.of(gram)
    return best(on_supports(unit, all_supports(gram)[1:]), unit) * unit.inverse


def on_supports(unit: UnitGram, supports: Tensor) -> Tensor:
    """Return for each support the coefficients of the least norm, of any sign; not finite where there are none.

    Coefficients are those of the unit vectors, ``y = weights * norms``: there the matrix is ``cosines`` whatever the
    vectors' scales, and the sum of the weights, 1, is ``inverse @ y``.

    Args:
        supports: ``[S, K]`` bool.

    Returns:
        ``[S, K]``, 0 outside of the support.
    """
    return least_and_slope(unit, supports, torch.zeros_like(unit.norms))[0]


def least_and_slope(unit: UnitGram, supports: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each support two solutions of the same systems, as coefficients of the unit vectors.

    Args:
        supports: ``[S, K]`` bool.
        products: ``[K]``, dot products of a vector with the unit vectors.

    Returns:
        ``[S, K]``, the point of least norm whose weights have sum 1; and ``[S, K]``, the projection of the vector on
        the differences of such points. Of any sign, 0 outside of the support, not finite where there are none.
    """
    count = len(unit.cosines)
    border = torch.where(supports, unit.inverse, 0.0)
    border = border / border.amax(dim=1, keepdim=True)
    system = torch.zeros(len(supports), count + 1, count + 1, dtype=border.dtype, device=border.device)
    system[:, :count, :count] = masked(unit.cosines, supports)
    system[:, :count, count] = -border
    system[:, count, :count] = border
    right = torch.zeros(len(supports), count + 1, 2, dtype=border.dtype, device=border.device)
    right[:, count, 0] = 1.0
    right[:, :count, 1] = products
    least, slope = torch.where(border[:, :, None] > 0, solve(system, right)[:, :count], 0.0).unbind(dim=2)
    return least / (least * unit.inverse).sum(dim=1, keepdim=True), slope


def best(candidates: Tensor, unit: UnitGram) -> Tensor:
    """Return the candidate of least norm out of ``[S, K]``, brought into the simplex; zeros where there is none."""
    inside = into_simplex(candidates, unit)
    squares = (inside @ unit.cosines * inside).sum(dim=1).clamp(min=0.0)
    least = squares.nan_to_num(torch.inf).argmin()
    return inside.index_select(0, least[None])[0].nan_to_num(0.0)


def into_simplex(candidates: Tensor, unit: UnitGram) -> Tensor:
    """Return ``[S, K]`` coefficients with weights of at least 0 and of sum 1; NaN where no weight is positive."""
    inside = candidates.nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
    return inside / (inside * unit.inverse).sum(dim=1, keepdim=True)


def wolfe(unit: UnitGram) -> Tensor:
    """Run Wolfe's algorithm: walk from support to support, with a smaller norm at every step."""
    is_zero = unit.norms == 0
    if is_zero.all():
        return torch.zeros_like(unit.norms)
    start = torch.zeros_like(unit.norms)
    shortest = torch.where(is_zero, torch.inf, unit.norms).argmin()
    start[shortest] = unit.norms[shortest]

    def slopes(y: Tensor) -> Tensor:
        products = y @ unit.cosines  # of the point with the unit vectors
        lower = products * unit.norms - (products * y).sum(dim=1, keepdim=True) * (1 - 1e-10)
        return torch.where(is_zero, torch.inf, lower)

    return walk(start[None], lambda _, support: on_supports(unit, support), slopes)[0]
