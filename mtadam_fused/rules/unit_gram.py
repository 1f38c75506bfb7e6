"""The dot products of gradients as their directions and their lengths: of any scale from vector to vector."""

from typing import NamedTuple

import torch
from torch import Tensor


class UnitGram(NamedTuple):
    """Cosines and norms of K vectors. A vector that is zero counts as at a right angle to all others."""

    cosines: Tensor  # [K, K], 1 on the diagonal
    norms: Tensor  # [K]
    inverse: Tensor  # [K], 1 / norms, or 0

    @classmethod
    def of(cls, gram: Tensor) -> "UnitGram":
        """Split ``gram``, ``[K, K]`` float64."""
        norms = gram.diagonal().sqrt()
        inverse = torch.where(norms > 0, 1.0 / norms, 0.0)
        cosines = (gram * inverse * inverse[:, None]).clamp(-1.0, 1.0)
        return cls(torch.where(torch.eye(len(gram), device=gram.device) > 0, 1.0, cosines), norms, inverse)
