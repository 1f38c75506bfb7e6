"""Gradient normalization."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hyperparameters import check_not_negative
from .progress import Progress
from .rule import Rule


class GradientNormalization(Rule):
    """Bring every term's gradient to norm 1: the weight of term k is ``r_k**alpha / ||g_k||``.

    r_k is GradNorm's relative inverse training rate, above 1 for terms that train slowly. From the survey "Strategies
    for Balancing Multiple Loss Functions in Deep Learning". A term whose gradient is zero has weight 1; losses below
    1e-12 count as 1e-12.

    Args:
        alpha: how much to favor slow terms; at 0 the losses are not looked at.

    Raises:
        ValueError: an ``alpha`` that is no finite number of at least 0.
    """

    def __init__(self, alpha: float = 0.0) -> None:
        check_not_negative("alpha", alpha)
        self.alpha = alpha
        self.needs_losses = alpha > 0
        self._progress = Progress()

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        norms = gram.diagonal().sqrt()
        favor = self._progress.inverse_rates(losses) ** self.alpha if self.alpha else 1.0
        return torch.where(norms > 0, favor / norms, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"initial_losses": self._progress.initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._progress.initial = state["initial_losses"]

    def __repr__(self) -> str:
        return f"GradientNormalization(alpha={self.alpha})"
