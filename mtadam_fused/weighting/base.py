"""The base class of weightings, checks of their arguments, and vectors with one element per term."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients.losses import Losses, is_free_to_read, named_losses
from ..gradients.terms import check_terms
from ..hyperparameters import (
    Term,
    TermWeights,
    check_not_negative,
    check_term_weights,
    is_number,
    items_of,
    plain_name,
    weights_of,
)
from ..reference import arithmetic_type


class Weighting(nn.Module):
    """Base class of weightings: ``weighting(losses)`` is sum_k priority_k * c_k, with the strategy's c_k for loss k.

    Losses come as a mapping from names or as a sequence, by position. A term that a mapping leaves out contributes
    nothing to that call. Losses may have no graph, as in validation. On the CPU, a loss that the strategy cannot use is
    an error. On a GPU or in torch.compile losses are not checked, because that would wait for the device: each strategy
    says what such a loss does, and one that is not finite makes the total not finite.

    Args:
        terms: names of the terms, or none where any will do.
        priorities: a factor of at least 0 for each term, on top of the strategy, as a mapping from names or as a
            sequence in the order of the terms, which without ``terms`` are positions. Default 1 for each.

    Raises:
        ValueError: a priority that is not a finite number of at least 0, or priorities that do not fit the terms.
        TypeError: a term that is neither a string nor a position.
    """

    def __init__(self, terms: Iterable[Term] = (), priorities: TermWeights = None) -> None:
        super().__init__()
        self.terms = check_terms(terms)
        self.priorities = numbers_by_term("priorities", priorities, self.terms)
        if isinstance(priorities, Sequence):
            self.terms = tuple(self.priorities or ())

    def forward(self, losses: Losses) -> Tensor:
        """Return the weighted sum, a scalar in the losses' dtype, but float32 for 16-bit losses.

        Args:
            losses: scalar losses, as a mapping from the terms' names or as a sequence in the order of the terms.

        Raises:
            TypeError: not a mapping or sequence of tensors.
            ValueError: no losses, a loss that is not scalar, not real or out of the strategy's range, an unknown term,
                or a sequence of another length than the terms; nothing has changed.
        """
        named = named_losses(losses, self.terms, need_graph=False)
        values = torch.stack([loss.reshape(()) for loss in named.values()])
        return self.total(values.to(arithmetic_type(values.dtype)), tuple(named))

    def total(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the total, a scalar, from the losses ``values`` ``[len(terms)]``: the sum of the contributions."""
        coefficients = self.coefficients(terms)
        contributions = self.contributions(values, terms)
        if len(set(coefficients)) == 1:
            return contributions.sum() * coefficients[0]
        return torch.stack([c * x for c, x in zip(coefficients, contributions.unbind(), strict=True)]).sum()

    def coefficients(self, terms: tuple[Term, ...]) -> list[float]:
        """Return the constant factors of the ``terms``' contributions: the priorities."""
        return weights_of(self.priorities, terms, name="priorities")

    def contributions(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return each term's contribution to the total from the losses ``values``; both are ``[len(terms)]``."""
        return values

    def extra_repr(self) -> str:
        """Return terms and priorities, for ``repr``."""
        shown = {"terms": list(self.terms), "priorities": self.priorities}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items() if value)


def numbers_by_term(
    name: str, given: TermWeights, terms: Sequence[Term] = (), *, signed: bool = False
) -> dict[Term, float] | None:
    """Return the argument ``given`` by term. Without terms a sequence goes by position.

    Args:
        name: of the argument, for errors.
        given: finite numbers.
        terms: names of the terms.
        signed: whether the numbers may be negative.

    Raises:
        ValueError: a value that is not such numbers, or that does not fit the ``terms``.
    """
    check_term_weights(given, name)
    if given is None:
        return None
    if not signed:
        for key, number in items_of(given):
            check_not_negative(f"{name}[{key!r}]", number)
    names = terms or (tuple(map(plain_name, given)) if isinstance(given, Mapping) else tuple(range(len(given))))
    return dict(zip(names, map(float, weights_of(given, names, name=name)), strict=True))


def positions_of(terms: Sequence[Term], known: Sequence[Term]) -> list[int]:
    """Return the positions of the ``terms`` among the ``known``.

    Raises:
        ValueError: a term that is not known.
    """
    for term in terms:
        if term not in known:
            raise ValueError(f"unknown term {term!r}: the terms are {list(known)}; name it when making the weighting")
    return [known.index(term) for term in terms]


def pick(vector: Tensor, positions: Sequence[int]) -> Tensor:
    """Return the elements at ``positions``, without an index that would have to be copied to the device."""
    return vector if list(positions) == list(range(len(vector))) else torch.stack([vector[i] for i in positions])


def check_values(values: Tensor, terms: Sequence[Term], least: float, needed: str) -> None:
    """Raise ValueError for a loss below ``least``, where reading it costs nothing; ``needed`` names the remedy."""
    if is_free_to_read(values):
        for term, value in zip(terms, values.tolist(), strict=True):
            if value < least:
                raise ValueError(f"loss {term!r} is {value}; {needed}: leave it out of this step, or change the loss")


def smallest(values: Tensor) -> float:
    """Return the smallest loss that can be a divisor: below it the reciprocal would overflow."""
    return torch.finfo(values.dtype).tiny


def vector_like(values: Tensor, numbers: Sequence[float]) -> Tensor:
    """Return ``numbers`` as a vector of the dtype and on the device of ``values``, filled there: no copy waits."""
    if len(set(numbers)) == 1:
        return values.new_full((len(numbers),), numbers[0])
    return torch.stack([values.new_full((), number) for number in numbers])


def default_device() -> torch.device:
    """Return the device for buffers: torch's default, or the CPU for the meta device, which keeps no values."""
    device = torch.empty(0).device
    return torch.device("cpu") if device.type == "meta" else device


def check_positive(name: str, number: Any) -> None:
    """Raise ValueError unless ``number`` is positive and finite."""
    if not is_number(number) or not 0.0 < number < math.inf:
        raise ValueError(f"{name} is {number!r}; it must be a finite number above 0")


def check_fraction(name: str, number: Any) -> None:
    """Raise ValueError unless ``number`` is in [0, 1]."""
    if not is_number(number) or not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} is {number!r}; it must be a number from 0 to 1")


def check_batches(batches: Any) -> None:
    """Raise ValueError unless ``batches`` is a number of calls."""
    if not isinstance(batches, int) or isinstance(batches, bool) or batches < 1:
        raise ValueError(f"batches is {batches!r}; it must be a whole number of at least 1")
