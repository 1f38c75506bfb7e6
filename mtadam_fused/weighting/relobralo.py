"""ReLoBRaLo."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..hyperparameters import Term, TermWeights
from .base import check_fraction, check_positive, check_values, smallest
from .history import History, HistoryWeighting, softmax_where
from .random_numbers import BITS, RandomNumbers


class ReLoBRaLo(HistoryWeighting):
    """sum_k w_k L_k: Relative Loss Balancing with Random Lookback (Bischof and Kraus, arXiv 2110.09813).

    At call t, with b(t') = K softmax(L(t) / (T L(t'))) over the K terms of the call::

        w(t) = alpha * (rho * w(t - 1) + (1 - rho) * b(0)) + (1 - alpha) * b(t - 1)

    so that losses which have fallen little get more weight. rho is 1 with the probability given, else 0: a lookback to
    the first losses. It is drawn once per call. The weights start at 1, and are held constant. L_k(0) and L_k(t - 1)
    are the term's first and last positive losses in earlier calls; a term that has none has the ratio 1. One that is
    left out of a call keeps its weight.

    State: ``first``, ``last`` and ``weights``, as in :class:`HistoryWeighting`, and the ``seed`` and the number of
    ``draws`` of the random numbers. In ``eval()`` mode the weights stay as they are, and nothing is drawn. In several
    processes give all the same ``seed``.

    In training, losses must not be negative; in ``eval()`` mode any finite ones will do. A loss of zero is weighted,
    and later losses are not compared with it. So is a negative one on a GPU or in torch.compile, where losses are not
    checked; there, one that is not finite leaves its weight as it is.

    Args:
        alpha: in [0, 1], how much the weights keep of what they were.
        rho: in [0, 1], the probability of no lookback.
        temperature: T > 0; the higher, the more equal the weights.
        seed: of rho, below 2**62; default one that torch's generator draws.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: an argument out of its range, or bad priorities.
    """

    first: Tensor
    last: Tensor
    weights: Tensor
    FIRST: ClassVar = {"first": math.nan, "last": math.nan, "weights": 1.0}

    def __init__(
        self,
        alpha: float = 0.999,
        rho: float = 0.999,
        temperature: float = 1.0,
        *,
        seed: int | None = None,
        priorities: TermWeights = None,
    ) -> None:
        check_fraction("alpha", alpha)
        check_fraction("rho", rho)
        check_positive("temperature", temperature)
        super().__init__((), priorities)
        self.alpha = alpha
        self.rho = rho
        self.temperature = temperature
        self.random = RandomNumbers(seed)

    def check_losses(self, values: Tensor, terms: tuple[Term, ...], history: History) -> None:
        """Raise ValueError for a negative loss that would be compared with others."""
        if self.training:
            check_values(values, terms, 0.0, "it must not be negative, to be compared with earlier ones")

    def weigh(self, losses: Tensor, history: History) -> Tensor:
        """Advance the weights and the losses that later ones are compared with."""
        first, last, weights = (history.buffers[name] for name in self.FIRST)
        if not self.training:
            return weights.clone()
        keep = self.random.draw(1, losses.device) < int(self.rho * 2**BITS)
        past = torch.where(keep, weights, self._balance(losses, first))
        advanced = self.alpha * past + (1.0 - self.alpha) * self._balance(losses, last)
        advanced = torch.where(losses.isfinite(), advanced, weights)
        weights.copy_(advanced)
        usable = losses.isfinite() & (losses >= smallest(losses))
        first.copy_(torch.where(usable & first.isnan(), losses, first))
        last.copy_(torch.where(usable, losses, last))
        return advanced

    def _balance(self, losses: Tensor, reference: Tensor) -> Tensor:
        """Return K softmax(losses / (T reference)) over the losses that are finite."""
        ratios = torch.where(reference.isnan(), 1.0, losses / reference)
        present = losses.isfinite()
        return softmax_where(present, ratios / self.temperature) * present.sum()
