"""Strategies that divide each loss by a number: equal weights, initial loss, prior loss, real-time loss."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..gradients.losses import is_free_to_read
from ..hyperparameters import Term, TermWeights, weights_of
from .base import Weighting, check_values, numbers_by_term, pick

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

    Losses must be positive. One that is not, where it cannot be seen, contributes nothing to that call.

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


class InitialLoss(Weighting):
    """sum_k L_k / L_k(0): each loss in units of what it was at first, or of what is given.

    L_k(0) is the mean of the term's losses in the first ``batches`` calls that have it; until then, of those so far.
    Calls in ``eval()`` mode are not counted; a loss that has no L_k(0) there yet is divided by itself. ::

        weighting = InitialLoss(batches=10)
        weighting = InitialLoss(values={"digit": initial_class_loss(10), "angle": initial_regression_loss(angles)})

    State: ``sums`` and ``counts`` of the losses measured, [K] for the K terms seen, in the order in which they were
    first seen, and ``terms`` in the extra state. It loads into a module that has seen nothing. Each process measures
    its own losses, unless the module is part of what DistributedDataParallel wraps: that takes the first process's, and
    all must then meet the same terms in the same order.

    Losses must be positive while they are measured; later any finite ones will do. One that is not, where it cannot be
    seen, is not measured, and contributes nothing while its term has no L_k(0).

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

    def __init__(self, batches: int = 1, *, values: TermWeights = None, priorities: TermWeights = None) -> None:
        if not isinstance(batches, int) or isinstance(batches, bool) or batches < 1:
            raise ValueError(f"batches is {batches!r}; it must be a whole number of at least 1")
        if values is not None and batches != 1:
            raise ValueError(f"batches is {batches} and values is given; give one of them")
        positive = None if values is None else positive_by_term(values)
        super().__init__(positive or (), priorities)
        self.batches = batches
        self.values = positive
        self.register_buffer("sums", torch.zeros(0))  # they grow to the terms that have been seen
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def contributions(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the losses over the initial ones; measures those first."""
        known = tuple(dict.fromkeys((*self.terms, *terms)))
        sums, counts = self._grow(known, values)
        positions = [known.index(term) for term in terms]
        self._check(values, terms, pick(counts, positions))
        if self.training:
            measure(sums, counts, scatter_with_nan(values.detach(), positions, len(known)), self.batches)
            self.terms, self.sums, self.counts = known, sums, counts
        sums, counts = pick(sums, positions), pick(counts, positions)
        means = (sums / counts).to(values.dtype)
        return values / torch.where(counts > 0, means, usable_divisors(values))

    def _grow(self, known: tuple[Term, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums and counts of all ``known`` terms, on the device of ``like``; new ones are as given, or empty."""
        new = known[len(self.sums) :]
        if not new:
            return self.sums.to(like.device), self.counts.to(like.device)
        given = [0.0] * len(new) if self.values is None else weights_of(self.values, new, name="values")
        sums = [like.new_full((1,), value) for value in given]
        counts = self.counts.new_full((len(new),), 0 if self.values is None else self.batches, device=like.device)
        return torch.cat([self.sums.to(like), *sums]), torch.cat([self.counts.to(like.device), counts])

    def _check(self, values: Tensor, terms: tuple[Term, ...], counts: Tensor) -> None:
        """Raise ValueError for a loss that cannot be the divisor it has to be, where reading it costs nothing."""
        if is_free_to_read(values):
            enough = self.batches if self.training else 1
            needed = [i for i, count in enumerate(counts.tolist()) if count < enough]
            if needed:
                check_values(pick(values, needed), [terms[i] for i in needed], smallest(values), POSITIVE)

    def _apply(self, *arguments: Any, **options: Any) -> "InitialLoss":
        """Keep the dtype of the sums when the module's changes: a sum soon has too many digits for 16 bits."""
        sums = self.sums
        super()._apply(*arguments, **options)
        self.sums = sums.to(self.sums.device)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Return the terms that ``sums`` and ``counts`` belong to."""
        return {"terms": list(self.terms[: len(self.sums)])}

    def set_extra_state(self, state: Any) -> None:
        """Load saved terms."""
        self.terms = tuple(dict.fromkeys((*state["terms"], *self.terms)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Load buffers of any length."""
        for name in ("sums", "counts"):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.dim() == 1:
                setattr(self, name, torch.zeros_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def positive_by_term(given: TermWeights) -> dict[Term, float]:
    """Return the argument ``values`` by term: positive numbers. Raise ValueError for anything else."""
    values = numbers_by_term("values", given)
    if not values:
        raise ValueError(f"values is {given!r}; give each term a positive number")
    for term, value in values.items():
        if value == 0.0:
            raise ValueError(f"values[{term!r}] is {value}; {POSITIVE}")
    return values


def smallest(values: Tensor) -> float:
    """Return the smallest loss that can be a divisor: below it the reciprocal would overflow."""
    return torch.finfo(values.dtype).tiny


def usable_divisors(values: Tensor) -> Tensor:
    """Return ``values`` without their graph; infinite, to contribute nothing, where they cannot be divisors."""
    constants = values.detach()
    return torch.where(constants >= smallest(values), constants, math.inf)


def scatter_with_nan(values: Tensor, positions: list[int], length: int) -> Tensor:
    """Return a vector of ``length`` with ``values`` at their ``positions`` and NaN elsewhere."""
    if positions == list(range(length)):
        return values
    absent = values.new_full((), math.nan)
    return torch.stack([values[positions.index(i)] if i in positions else absent for i in range(length)])


def measure(sums: Tensor, counts: Tensor, values: Tensor, batches: int) -> None:
    """Add ``values`` to ``sums`` and count them, in place, where fewer than ``batches`` are in. All are ``[K]``."""
    measured = (counts < batches) & (values >= smallest(values)) & values.isfinite()
    sums += torch.where(measured, values, 0.0)
    counts += measured
