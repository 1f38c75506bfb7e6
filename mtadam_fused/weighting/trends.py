"""Strategies that weight each loss by how it has changed from period to period: DWA and SoftAdapt."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..hyperparameters import Term, TermWeights, is_number
from .base import check_batches, check_positive, check_values, smallest
from .history import History, HistoryWeighting, measure, softmax_where


class TrendWeighting(HistoryWeighting):
    """Base class of weightings that compare each term's mean loss over its last period with the period before.

    A term's period is ``batches`` calls in training that have it.
    """

    sums: Tensor
    counts: Tensor
    last: Tensor
    before: Tensor
    FIRST: ClassVar = {"sums": 0.0, "counts": 0, "last": math.nan, "before": math.nan}

    def __init__(self, batches: int, priorities: TermWeights) -> None:
        check_batches(batches)
        super().__init__((), priorities)
        self.batches = batches

    def advance_periods(self, losses: Tensor, history: History, least: float) -> None:
        """Measure ``losses`` [K] of at least ``least``, and end the periods that are complete, in place."""
        sums, counts, last, before = (history.buffers[name] for name in self.FIRST)
        measure(sums, counts, losses, self.batches, least)
        complete = counts >= self.batches
        before.copy_(torch.where(complete, last, before))
        last.copy_(torch.where(complete, sums / counts, last))
        sums.masked_fill_(complete, 0.0)
        counts.masked_fill_(complete, 0)


class DWA(TrendWeighting):
    """sum_k w_k L_k, w = K softmax(r / T): Dynamic Weight Averaging (Liu, Johns and Davison, arXiv 1803.10704).

    r_k is the term's mean loss in its last period over that in the period before, so that losses which fall slowly get
    more weight; the weights are held constant. The softmax is over the K terms of the call. A term that has no two
    periods yet, or whose mean before was zero, has r_k = 1. In the paper a period is an epoch. ::

        weighting = DWA(batches=len(loader))

    State: ``sums`` and ``counts`` of the losses in the present period, and the means ``last`` and ``before``, as in
    :class:`HistoryWeighting`. In ``eval()`` mode the weights are those that training has come to.

    In training, losses must not be negative; in ``eval()`` mode any finite ones will do. On a GPU or in torch.compile,
    where losses are not checked, a negative one is weighted but not measured.

    Args:
        batches: how many calls make a period, at least 1.
        temperature: T > 0; the higher, the more equal the weights.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: ``batches`` or ``temperature`` out of its range, or bad priorities.
    """

    def __init__(self, batches: int, temperature: float = 2.0, *, priorities: TermWeights = None) -> None:
        check_positive("temperature", temperature)
        super().__init__(batches, priorities)
        self.temperature = temperature

    def check_losses(self, values: Tensor, terms: tuple[Term, ...], history: History) -> None:
        """Raise ValueError for a negative loss that would be measured."""
        if self.training:
            check_values(values, terms, 0.0, "it must not be negative, to be compared with other periods")

    def weigh(self, losses: Tensor, history: History) -> Tensor:
        """Return the weights that earlier periods give, then measure this call."""
        last, before = history.buffers["last"], history.buffers["before"]
        rates = torch.where(before >= smallest(before), last / before, 1.0)
        present = losses.isfinite()
        weights = softmax_where(present, rates / self.temperature) * present.sum()
        if self.training:
            self.advance_periods(losses, history, least=0.0)
        return weights


class SoftAdapt(TrendWeighting):
    """sum_k w_k L_k, w = softmax(beta * s), with the change s_k of each loss (Heydari et al., arXiv 1912.12355).

    s_k is the term's mean loss in its last period, this call included, less that in the period before; 0 for a term
    that has no two periods yet. The weights are held constant, and those of the terms in a call add up to 1.

    The paper's variants: ``normalized`` divides the changes by sum_j |s_j| over the call's terms, so that a factor on
    all losses changes nothing. ``loss_weighted`` multiplies exp(beta * s_k) by the present loss L_k before the weights
    are brought to the sum 1; both may be set.

    State: ``sums`` and ``counts`` of the losses in the present period, and the means ``last`` and ``before``, as in
    :class:`HistoryWeighting`. In ``eval()`` mode the changes are those that training has come to.

    Any finite losses will do, but with ``loss_weighted`` they must not be negative. A loss of zero then has weight 0;
    so has a negative one on a GPU or in torch.compile, where losses are not checked.

    Args:
        beta: a finite number; above 0 it favors losses that fall slowly or rise, below 0 those that fall fast.
        batches: how many calls make a period, at least 1.
        normalized: whether the changes are relative to each other.
        loss_weighted: whether larger losses have larger weights.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: ``beta`` or ``batches`` out of its range, or bad priorities.
    """

    def __init__(
        self,
        beta: float = 0.1,
        batches: int = 1,
        *,
        normalized: bool = False,
        loss_weighted: bool = False,
        priorities: TermWeights = None,
    ) -> None:
        if not is_number(beta) or not math.isfinite(beta):
            raise ValueError(f"beta is {beta!r}; it must be a finite number")
        super().__init__(batches, priorities)
        self.beta = beta
        self.normalized = normalized
        self.loss_weighted = loss_weighted

    def check_losses(self, values: Tensor, terms: tuple[Term, ...], history: History) -> None:
        """Raise ValueError for a negative loss that would be a weight."""
        if self.loss_weighted:
            check_values(values, terms, 0.0, "it must not be negative, or its weight would be")

    def weigh(self, losses: Tensor, history: History) -> Tensor:
        """Measure this call, then return the weights."""
        if self.training:
            self.advance_periods(losses, history, least=-math.inf)
        present = losses.isfinite()
        changes = history.buffers["last"] - history.buffers["before"]
        changes = torch.where(present & changes.isfinite(), changes, 0.0).to(losses.dtype)
        if self.normalized:
            changes = changes / changes.abs().sum().clamp(min=smallest(changes))
        logits = self.beta * changes
        if self.loss_weighted:
            logits = logits + losses.log()
            present = logits.isfinite()
        return softmax_where(present, logits)
