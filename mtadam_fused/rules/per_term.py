"""A user's number for each term."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..hyperparameters import TermWeights, check_term_weights, items_of, weights_of


class PerTerm:
    """A number for each term, given by name or in the terms' order, as a tensor on the device of the last step.

    Args:
        given: a mapping from the terms' names, or a sequence in the terms' order; None for 1 each.
        name: of ``given``, for errors.

    Raises:
        ValueError: values that are not finite numbers.
    """

    def __init__(self, given: TermWeights, name: str) -> None:
        check_term_weights(given, name)
        self.given = given
        self.name = name
        self._values: list[float] = []  # [K]
        self._copied: list[float] = []
        self._tensor = torch.empty(0, device="cpu")  # self._copied on the device

    def check_terms(self, terms: Sequence[Hashable], *, allow_more: bool) -> None:
        """Look up the numbers of ``terms``; raise ValueError if there is not one for each."""
        self._values = weights_of(self.given, terms, allow_more=allow_more, name=self.name)

    def like(self, terms: Tensor) -> Tensor:
        """Return ``[K]``, the numbers of K terms, on the device and with the dtype of ``terms``, which is ``[K]``."""
        if self.given is None:
            return torch.ones_like(terms)
        if len(self._values) != len(terms):
            raise ValueError(
                f"{self.name} is known for {len(self._values)} terms, and there are {len(terms)}; "
                "call the rule's check_terms(terms) before the rule"
            )
        if self._copied != self._values or (self._tensor.device, self._tensor.dtype) != (terms.device, terms.dtype):
            on_host = torch.tensor(self._values, dtype=terms.dtype, device="cpu")
            self._tensor = on_host.to(terms.device, non_blocking=True)
            self._copied = self._values  # last: an interrupt before leaves this undone
        return self._tensor


def check_preference(preference: TermWeights) -> None:
    """Raise ValueError for a preference with a negative number, or with zeros alone."""
    check_term_weights(preference, "preference")
    if preference is None:
        return
    weights = [weight for _, weight in items_of(preference)]
    if any(weight < 0 for weight in weights) or not any(weights):
        raise ValueError(f"preference is {preference!r}; it must have numbers of at least 0, and one above 0")
