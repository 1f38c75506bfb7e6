"""IMTL-G."""

import torch
from torch import Tensor

from .eigen import solve_least_norm
from .gram_rule import GramRule


class IMTLG(GramRule):
    """Weight so that the update has the same projection on every gradient: IMTL-G (Liu et al., ICLR 2021).

    With G the matrix of dot products and n_k the gradients' norms, v = G^-1 n, and the weights are v over their sum.
    They may be negative, and so may the common projection, in which case all losses grow: the paper does not forbid it.
    Where gradients depend on each other linearly, the pseudo-inverse of their cosines takes the place of the inverse,
    which serves gradients of any scale. Where their directions cancel, as opposite ones do, the weights are 0.

    Up to eight terms nothing waits for the device. Of more, the same on the host: one wait.

    Args:
        preference: the projections' ratios, in place of the same for all.
        normalized: whether to weight the gradients divided by their norms.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: as in :class:`Rule`.
    """

    def coefficients(self, cosines: Tensor, norms: Tensor, preference: Tensor) -> Tensor:
        u = solve_least_norm(cosines, preference)
        weights = torch.where(norms > 0, u / norms, 0.0)
        total = weights.sum()
        return torch.where(total.abs() > 1e-12 * weights.abs().sum(), u / total, 0.0)
