"""The point of least norm in the convex hull of K vectors, from their dot products."""

import torch
from torch import Tensor

EXHAUSTIVE = 8  # up to so many vectors every set of them is tried: no decision has to wait for a device


def min_norm_weights(gram: Tensor) -> Tensor:
    """Return the weights ``[K]``, at least 0 and of sum 1, that minimize ``weights @ gram @ weights``.

    The least point is a combination of an affinely independent set of the vectors, the support, and there the solution
    of a linear system. Up to eight vectors the systems of all sets are solved at once, on the device; of more, only
    those along Wolfe's path ("Finding the nearest point in a polytope", 1976), on the host. Vectors that are zero get
    weight 0.

    Args:
        gram: ``[K, K]`` float64, of any scale from vector to vector.
    """
    norms = gram.diagonal().sqrt()
    if len(gram) == 1:  # a batch of one system goes to a solver that a CUDA graph may not capture
        return (norms > 0).to(gram.dtype)
    inverse = torch.where(norms > 0, 1.0 / norms, 0.0)
    cosines = gram * inverse * inverse[:, None]
    if len(gram) <= EXHAUSTIVE:
        return best(on_supports(cosines, inverse, all_supports(gram)), cosines, norms)
    return wolfe(cosines.cpu(), inverse.cpu(), norms.cpu()).to(gram.device)


def all_supports(gram: Tensor) -> Tensor:
    """Return ``[2**K - 1, K]`` bool on the device of ``gram``: every set of the K vectors but the empty one."""
    sets = torch.arange(1, 2 ** len(gram), device=gram.device)
    return sets[:, None] >> torch.arange(len(gram), device=gram.device) & 1 == 1


def on_supports(cosines: Tensor, inverse: Tensor, supports: Tensor) -> Tensor:
    """Return for each support the weights of sum 1, of any sign, with the least norm; not finite where there are none.

    In y = weights * norms the matrix is ``cosines`` whatever the vectors' scales, and the sum is ``inverse @ y``.

    Args:
        supports: ``[S, K]`` bool.

    Returns:
        ``[S, K]``, 0 outside of the support.
    """
    count = len(cosines)
    border = torch.where(supports, inverse, 0.0)
    border = border / border.amax(dim=1, keepdim=True)
    system = torch.zeros(len(supports), count + 1, count + 1, dtype=cosines.dtype, device=cosines.device)
    system[:, :count, :count] = torch.where(supports[:, :, None] & supports[:, None, :], cosines, 0.0)
    system[:, :count, :count] += torch.diag_embed((~supports).to(cosines.dtype))
    system[:, :count, count] = -border
    system[:, count, :count] = border
    right = torch.zeros(len(supports), count + 1, 1, dtype=cosines.dtype, device=cosines.device)
    right[:, count] = 1.0
    solution, _ = torch.linalg.solve_ex(system, right)
    weights = solution[:, :count, 0] * border
    return weights / weights.sum(dim=1, keepdim=True)


def best(candidates: Tensor, cosines: Tensor, norms: Tensor) -> Tensor:
    """Return the candidate of least norm out of ``[S, K]``, brought into the simplex; zeros where there is none."""
    inside = candidates.nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
    inside = inside / inside.sum(dim=1, keepdim=True)
    y = inside * norms
    squares = (y @ cosines * y).sum(dim=1).clamp(min=0.0)
    least = squares.nan_to_num(torch.inf).argmin()
    return inside.index_select(0, least[None])[0].nan_to_num(0.0)


def wolfe(cosines: Tensor, inverse: Tensor, norms: Tensor) -> Tensor:
    """Run Wolfe's algorithm: walk from support to support, with a smaller norm at every step."""
    alive = norms > 0
    if not alive.any():
        return torch.zeros_like(norms)
    weights = torch.zeros_like(norms)
    weights[torch.where(alive, norms, torch.inf).argmin()] = 1.0
    support = weights > 0
    for _ in range(10 * len(norms)):
        slopes = cosines @ (weights * norms) * norms  # dot products of the point with the vectors
        entering = torch.where(alive & ~support, slopes, torch.inf).argmin()
        if support[entering] or slopes[entering] >= (weights @ slopes) * (1 - 1e-10):
            break
        support[entering] = True
        weights = descend(cosines, inverse, norms, weights, support)
        support = weights > 0
    return weights


def descend(cosines: Tensor, inverse: Tensor, norms: Tensor, weights: Tensor, support: Tensor) -> Tensor:
    """Move ``weights`` to the least point of the support, and drop vectors whose weight would turn negative."""
    while True:
        aim = on_supports(cosines, inverse, support[None])[0]
        if not aim.isfinite().all():
            return weights
        blocking = support & (aim <= 0)
        if not blocking.any():
            return aim
        share = torch.where(blocking, weights / (weights - aim), torch.inf).min()
        weights = weights + share.clamp(0.0, 1.0) * (aim - weights)
        lengths = weights * norms
        support = support & ~(blocking & (lengths <= 1e-15 * lengths.max()))
        dropped = blocking & ~support
        if not dropped.any():
            return weights.clamp(min=0.0)
        weights = torch.where(support, weights, 0.0)
