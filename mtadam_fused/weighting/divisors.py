"""Strategies that divide each loss by a number: equal weights, initial loss, prior loss, real-time loss."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..gradients.losses import is_free_to_read
from ..hyperparameters import Term, TermWeights, weights_of
from .base import Weighting, check_batches, check_values, numbers_by_term, pick, smallest
from .history import History, HistoryWeighting, measure

POSITIVE = "it must be positive to be divided by"


class EqualWeights(Weighting):
    """Take the mean of the losses, sum_k L_k / K with K losses in the call: the baseline. Any finite ones will do. ::

        weighting = EqualWeights(priorities={"fit": 1.0, "size": 0.1})
        weighting({"fit": fit, "size": size}).backward()

    Args:
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: bad priorities.
    """

    def __init__(self, *, priorities: TermWeights = None) -> None:
        super().__init__(priorities=priorities)

    def coefficients(self, terms: tuple[Term, ...]) -> list[float]:
        """Return the priorities over the number of losses."""
        return [weight / len(terms) for weight in super().coefficients(terms)]


class PriorLoss(Weighting):
    """sum_k L_k / L_k(prior), with the losses of a model that knows only how its targets are distributed.

    :func:`class_prior_loss` and :func:`regression_prior_loss` compute those. Any finite losses will do. ::

        weighting = PriorLoss({"digit": class_prior_loss(labels), "angle": regression_prior_loss(angles)})

    Args:
        values: a positive number for each term, as a mapping from names or as a sequence.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: values that are not positive and finite, or bad priorities.
    """

    def __init__(self, values: TermWeights, *, priorities: TermWeights = None) -> None:
        positive = positive_by_term(values)
        super().__init__(positive, priorities)
        self.values = positive

    def coefficients(self, terms: tuple[Term, ...]) -> list[float]:
        """Return the priorities over the values."""
        values = weights_of(self.values, terms, name="values")
        return [weight / value for weight, value in zip(super().coefficients(terms), values, strict=True)]


class RealTimeLoss(Weighting):
    """sum_k L_k / sg(L_k), sg() held constant: the value is the number of losses, the gradient sum_k grad L_k / L_k.

    Losses must be positive. On a GPU or in torch.compile, where losses are not checked, one that is not positive
    contributes nothing to that call.

    Args:
        priorities: as in :class:`Weighting`; the value is their sum.

    Raises:
        ValueError: bad priorities.
    """

    def __init__(self, *, priorities: TermWeights = None) -> None:
        super().__init__(priorities=priorities)

    def contributions(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return ones, with the gradient of the losses' logarithms."""
        check_values(values, terms, smallest(values), POSITIVE)
        return values / usable_divisors(values)


class InitialLoss(HistoryWeighting):
    """sum_k L_k / L_k(0): each loss in units of what it was at first, or of what is given.

    L_k(0) is the mean of the term's losses in the first ``batches`` calls that have it; until then, of those so far.
    Calls in ``eval()`` mode are not counted; a loss that has no L_k(0) there yet is divided by itself. ::

        weighting = InitialLoss(batches=10)
        weighting = InitialLoss(values={"digit": initial_class_loss(10), "angle": initial_regression_loss(angles)})

    State: ``sums`` and ``counts`` of the losses measured, as in :class:`HistoryWeighting`.

    Losses must be positive while they are measured; later any finite ones will do. On a GPU or in torch.compile, where
    losses are not checked, one that is not positive is not measured, and contributes nothing while its term has no
    L_k(0).

    Args:
        batches: how many calls to measure, at least 1.
        values: L_k(0) > 0 for each term, as a mapping from names or as a sequence, instead of measuring.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: ``batches`` is not a whole number of at least 1 or is given along with ``values``, values that are
            not positive and finite, or bad priorities.
    """

    sums: Tensor
    counts: Tensor
    FIRST: ClassVar = {"sums": 0.0, "counts": 0}

    def __init__(self, batches: int = 1, *, values: TermWeights = None, priorities: TermWeights = None) -> None:
        check_batches(batches)
        if values is not None and batches != 1:
            raise ValueError(f"batches is {batches} and values is given; give one of them")
        positive = None if values is None else positive_by_term(values)
        super().__init__(positive or (), priorities)
        self.batches = batches
        self.values = positive

    def first_elements(self, name: str, terms: tuple[Term, ...]) -> list[float]:
        """Return what is given for new terms, as if it had been measured."""
        if self.values is None:
            return super().first_elements(name, terms)
        values = weights_of(self.values, terms, name="values")
        return values if name == "sums" else [self.batches] * len(terms)

    def contributions(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the losses over the initial ones; measures those first."""
        return values / self.weigh_call(values, terms)

    def check_losses(self, values: Tensor, terms: tuple[Term, ...], history: History) -> None:
        """Raise ValueError for a loss that cannot be the divisor it has to be."""
        if is_free_to_read(values):
            enough = self.batches if self.training else 1
            counts = pick(history.buffers["counts"], history.positions).tolist()
            needed = [i for i, count in enumerate(counts) if count < enough]
            if needed:
                check_values(pick(values, needed), [terms[i] for i in needed], smallest(values), POSITIVE)

    def weigh(self, losses: Tensor, history: History) -> Tensor:
        """Return the divisors: the means of the measured losses, or what is to be used before there are any."""
        sums, counts = history.buffers["sums"], history.buffers["counts"]
        if self.training:
            measure(sums, counts, losses, self.batches, smallest(losses))
        return torch.where(counts > 0, (sums / counts).to(losses.dtype), usable_divisors(losses))


def positive_by_term(given: TermWeights) -> dict[Term, float]:
    """Return the argument ``values`` by term: positive numbers. Raise ValueError for anything else."""
    values = numbers_by_term("values", given)
    if not values:
        raise ValueError(f"values is {given!r}; give each term a positive number")
    for term, value in values.items():
        if value == 0.0:
            raise ValueError(f"values[{term!r}] is {value}; {POSITIVE}")
    return values


def usable_divisors(values: Tensor) -> Tensor:
    """Return ``values`` without their graph; infinite, to contribute nothing, where they cannot be divisors."""
    constants = values.detach()
    return torch.where(constants >= smallest(values), constants, math.inf)
