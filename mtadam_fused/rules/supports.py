"""Sets of vectors, and the linear systems of their dot products: what exact solvers of small problems try."""

from collections.abc import Callable

import torch
from torch import Tensor

EXHAUSTIVE = 8  # up to so many vectors every set of them is tried: no decision has to wait for a device


def all_supports(gram: Tensor) -> Tensor:
    """Return ``[2**K, K]`` bool on the device of ``gram``: every set of the K vectors, the empty one first."""
    sets = torch.arange(2 ** len(gram), device=gram.device)
    return sets[:, None] >> torch.arange(len(gram), device=gram.device) & 1 == 1


def solve(systems: Tensor, right: Tensor) -> Tensor:
    """Solve ``[S, N, N]`` systems for ``[S, N, R]`` right-hand sides; not finite where a system is singular.

    Does not wait for the device.
    """
    if len(systems) == 1:  # a batch of one system goes to a solver that a CUDA graph may not capture
        return torch.linalg.solve_ex(systems.expand(2, -1, -1), right.expand(2, -1, -1))[0][:1]
    return torch.linalg.solve_ex(systems, right)[0]


def masked(matrix: Tensor, supports: Tensor) -> Tensor:
    """Return ``[S, K, K]``: for each of the ``[S, K]`` supports, ``matrix`` in its rows and columns, else the unit."""
    inside = torch.where(supports[:, :, None] & supports[:, None, :], matrix, 0.0)
    return inside + torch.diag_embed((~supports).to(matrix.dtype))


def solve_on_supports(matrix: Tensor, supports: Tensor, right: Tensor) -> Tensor:
    """Solve the part of a system that each support leaves.

    Args:
        matrix: ``[K, K]``.
        supports: ``[S, K]`` bool.
        right: ``[K, R]`` or ``[S, K, R]``.

    Returns:
        ``[S, K, R]``, 0 outside of the support, not finite where the part is singular.
    """
    return solve(masked(matrix, supports), torch.where(supports[:, :, None], right, 0.0))


def walk(start: Tensor, aim: Callable[[Tensor, Tensor], Tensor], slopes: Callable[[Tensor], Tensor]) -> Tensor:
    """Minimize convex functions of coefficients of at least 0, from support to support, on the host.

    Each step goes towards the least point of the support, up to where the first coefficient reaches 0; that one leaves.
    In the least point, the coefficient whose growth lowers the function the most enters. At most 10 K steps.

    Args:
        start: ``[R, K]``, coefficients to start from, for each of R functions.
        aim: from coefficients and supports ``[R, K]`` to the least points of the supports, of any sign; not finite ends
            the walk of that row.
        slopes: from coefficients to ``[R, K]``, negative for those whose growth lowers the function.
    """
    y, support = start, start > 0
    is_going = torch.ones(len(start), 1, dtype=torch.bool, device=start.device)
    for _ in range(10 * start.shape[1]):
        target = aim(y, support)
        is_going = is_going & target.isfinite().all(dim=1, keepdim=True)
        target = torch.where(is_going, target, y)
        blocking = support & (target <= 0) & is_going
        shares = torch.where(blocking, (y / (y - target)).nan_to_num(0.0), torch.inf)
        share = shares.amin(dim=1, keepdim=True)
        y = y + share.clamp(max=1.0) * (target - y)
        support = support & ~(blocking & (shares <= share))
        y = torch.where(support, y, 0.0)
        down = torch.where(support, torch.inf, slopes(y))
        entering = down.argmin(dim=1, keepdim=True)
        has_arrived = ~blocking.any(dim=1, keepdim=True)
        can_enter = down.gather(1, entering) < 0
        is_going = is_going & ~(has_arrived & ~can_enter)
        if not is_going.any():
            break
        support = support.scatter(1, entering, support.gather(1, entering) | (is_going & has_arrived & can_enter))
    return y.clamp(min=0.0)
