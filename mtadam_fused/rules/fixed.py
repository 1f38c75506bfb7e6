"""Fixed weights."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..hyperparameters import TermWeights, check_term_weights, weights_of
from .rule import Rule


class FixedWeights(Rule):
    """Weight the terms the same way at every step: Adam on the weighted sum of the losses.

    Args:
        weights: a mapping from the terms' names, or a sequence in the terms' order; default 1 for each.

    Raises:
        ValueError: weights that are not finite numbers; at a step, not one for each term.
    """

    needs_gram = False

    def __init__(self, weights: TermWeights = None) -> None:
        check_term_weights(weights, "weights")
        self.weights = weights
        self._values: list[float] = []  # [K]
        self._copied: list[float] = []
        self._tensor = torch.empty(0)  # self._copied on the device

    def check_terms(self, terms: Sequence[Hashable], *, allow_more: bool) -> None:
        self._values = weights_of(self.weights, terms, allow_more=allow_more, name="weights")

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        if self._copied != self._values or self._tensor.device != losses.device:
            self._copied = self._values
            self._tensor = torch.tensor(self._values, dtype=losses.dtype).to(losses.device, non_blocking=True)
        return self._tensor

    def __repr__(self) -> str:
        return f"FixedWeights({self.weights!r})"
