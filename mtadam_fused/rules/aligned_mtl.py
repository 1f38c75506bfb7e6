"""Aligned-MTL."""

import torch
from torch import Tensor

from .eigen import symmetric_eigen
from .gram_rule import GramRule, shares


class AlignedMTL(GramRule):
    """Make the gradients' principal components equally strong: Aligned-MTL (Senushkin et al., CVPR 2023).

    With G = V L V' the matrix of dot products and its eigenvalues, and l the least of them that is not zero, the
    weights are ``B p``, ``B = sqrt(l) V L^-1/2 V'``, p = 1 over the number of terms: the sum of gradients that are
    orthogonal and of length sqrt(l). One gradient much shorter than the others, or nearly a combination of them, makes
    the whole update short. A loss may still grow along it.

    Up to eight terms nothing waits for the device. Of more, the same on the host: one wait.

    Args:
        preference: p, in place of the same for all; its sum does not matter.
        normalized: whether to weight the gradients divided by their norms.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: as in :class:`Rule`.
    """

    def coefficients(self, cosines: Tensor, norms: Tensor, preference: Tensor) -> Tensor:
        values, vectors, is_null = symmetric_eigen(cosines * norms * norms[:, None])
        least = torch.where(is_null, torch.inf, values).amin()
        parts = torch.where(is_null, 0.0, (least / torch.where(is_null, 1.0, values)).sqrt())
        parts = torch.where(is_null, 0.0, parts)  # also where all are
        return norms * (vectors @ (parts * (shares(preference) @ vectors)))
