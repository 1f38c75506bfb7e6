"""Quadratic programs over coefficients of at least 0."""

import torch
from torch import Tensor

from .supports import EXHAUSTIVE, all_supports, solve_on_supports, walk


def nonnegative_least(matrix: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
    """Return the z of at least 0 that minimize ``z @ matrix @ z / 2 + linear @ z``.

    They are those where ``z`` and the slope, ``matrix @ z + linear``, are at least 0 and one of each pair is 0. Up to
    eight variables the systems of all supports are solved at once, on the device, and the solution is the one that
    comes closest to that. Of more, an active set walks to it, on the host (Lawson and Hanson's algorithm).

    Args:
        matrix: ``[K, K]`` float64, positive semidefinite, with 1 on the diagonal.
        linear: ``[R, K]``, for each of R problems.

    Returns:
        ``[R, K]`` solutions, and ``[R]`` how far they are from these conditions: not near 0 where there is no minimum.
    """
    if len(matrix) > EXHAUSTIVE:

        def aim(z: Tensor, support: Tensor) -> Tensor:
            return solve_on_supports(matrix, support, -linear[:, :, None])[:, :, 0]

        scale = linear.abs().amax(dim=1, keepdim=True)
        z = walk(torch.zeros_like(linear), aim, lambda z: z @ matrix + linear + 1e-12 * scale)
        return z, residuals(z, matrix, linear)
    supports = all_supports(matrix)
    z = solve_on_supports(matrix, supports, -linear.T).transpose(1, 2)  # [S, R, K]
    z = z.nan_to_num(torch.inf).clamp(min=0.0)
    far = residuals(z, matrix, linear)  # [S, R]
    least = far.argmin(dim=0)[None, :, None].expand(1, *linear.shape)
    return z.gather(0, least)[0].nan_to_num(0.0, 0.0, 0.0), far.amin(dim=0)


def residuals(z: Tensor, matrix: Tensor, linear: Tensor) -> Tensor:
    """Return how far ``[..., K]`` coefficients are from the conditions of the minimum."""
    return torch.minimum(z, z @ matrix + linear).abs().amax(dim=-1).nan_to_num(torch.inf)
