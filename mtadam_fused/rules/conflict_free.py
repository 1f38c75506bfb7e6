"""ConFIG."""

import torch
from torch import Tensor

from .eigen import solve_least_norm
from .gram_rule import GramRule


class ConFIG(GramRule):
    """Take the direction at the same angle to every gradient: ConFIG (Liu, Chu and Thuerey, arXiv 2408.11104).

    With C the matrix of the gradients' cosines and n_k their norms, u = pinv(C) 1, the direction is
    ``d = sum_k u_k g_k / n_k``, and its length the sum of the gradients' projections on it. No loss grows along it, and
    all have the same share, if no gradient is a combination of the others. With two terms this is DCGD's center
    direction (Hwang and Lim, arXiv 2409.18426). Where the directions of gradients cancel, as opposite ones do, the
    weights are 0. Directions that agree to about 1e-6 count as equal.

    Up to eight terms nothing waits for the device. Of more, the same on the host: one wait.

    Args:
        preference: the projections of d on the unit gradients, in place of the same for all.
        normalized: whether the length is of projections of unit gradients.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: as in :class:`Rule`.
    """

    def coefficients(self, cosines: Tensor, norms: Tensor, preference: Tensor) -> Tensor:
        u = solve_least_norm(cosines, preference)
        products = cosines @ u  # of the direction with the unit gradients
        square = u @ products
        return u * torch.where(square > 0, norms @ products / square, 0.0)
