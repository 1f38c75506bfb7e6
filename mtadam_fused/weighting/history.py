"""Weightings that keep something of each term's losses: buffers that grow to the terms that have been seen."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..hyperparameters import Term
from .base import Weighting, default_device, pick, vector_like


class History(NamedTuple):
    """What is kept of the losses, on their device."""

    terms: tuple[Term, ...]  # all K that are known, those of the call too
    positions: list[int]  # of the call's terms among them
    buffers: dict[str, Tensor]  # each [K]


class HistoryWeighting(Weighting):
    """Base class of weightings with buffers [K] for the K terms seen, in the order in which they were first seen.

    Calls in ``eval()`` mode change nothing. The ``state_dict`` holds the buffers, and ``terms`` in the extra state; it
    loads into a module that has seen nothing, or something else. Buffers keep their dtype when the module's changes.

    Each process measures its own losses, unless the module is part of what DistributedDataParallel wraps: before each
    call that takes the first process's buffers, and all processes must meet the same terms in the same order. The
    losses of the call itself stay each process's own, and so do weights that depend on them.
    """

    FIRST: ClassVar[Mapping[str, float]]  # by buffer, the element of a new term; one of integers if that is an int

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._given_terms = self.terms
        for name, first in self.FIRST.items():
            dtype = torch.int64 if isinstance(first, int) else None
            self.register_buffer(name, torch.zeros(0, dtype=dtype, device=default_device()))

    def contributions(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the losses, weighted."""
        return values * self.weigh_call(values, terms)

    def weigh_call(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the weights of a call's losses ``values``, and keep the buffers in training; both ``[len(terms)]``."""
        history = self._history(terms, values)
        self.check_losses(values, terms, history)
        losses = scatter_with_nan(values.detach(), history.positions, len(history.terms))
        weights = self.weigh(losses, history)
        if self.training:
            self.terms = history.terms
            for name, buffer in history.buffers.items():
                setattr(self, name, buffer)
        return pick(weights, history.positions).to(values.dtype)

    def check_losses(self, values: Tensor, terms: tuple[Term, ...], history: History) -> None:
        """Raise ValueError for losses that cannot be used, where reading them costs nothing."""

    def weigh(self, losses: Tensor, history: History) -> Tensor:
        """Return the weights, and in training update the buffers of ``history`` in place.

        Args:
            losses: ``[K]`` without a graph; NaN for a known term that is not in the call.
            history: of the K known terms.

        Returns:
            ``[K]``, no buffer itself; what it is for terms that are not in the call does not matter.
        """
        raise NotImplementedError

    def first_elements(self, name: str, terms: tuple[Term, ...]) -> list[float]:
        """Return the elements of new ``terms`` in the buffer ``name``."""
        return [self.FIRST[name]] * len(terms)

    def _history(self, terms: tuple[Term, ...], like: Tensor) -> History:
        """Return the buffers on the device of ``like``, grown to all known terms."""
        known = tuple(dict.fromkeys((*self.terms, *terms)))
        buffers: dict[str, Tensor] = {}
        for name in self.FIRST:
            buffer = getattr(self, name).to(like.device)
            new = known[len(buffer) :]
            if new:
                with torch.inference_mode(False):  # the buffer outlives the call
                    added = vector_like(like if buffer.is_floating_point() else buffer, self.first_elements(name, new))
                    buffer = torch.cat([buffer.to(added.dtype), added])
            buffers[name] = buffer
        return History(known, [known.index(term) for term in terms], buffers)

    def _apply(self, *arguments: Any, **options: Any) -> "HistoryWeighting":
        """Keep the buffers' dtypes when the module's changes: a sum soon has too many digits for 16 bits."""
        buffers = {name: getattr(self, name) for name in self.FIRST}
        super()._apply(*arguments, **options)
        for name, buffer in buffers.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Return the terms that the buffers' elements belong to."""
        return {"terms": list(self.terms[: len(getattr(self, next(iter(self.FIRST))))])}

    def set_extra_state(self, state: Any) -> None:
        """Load saved terms, in the place of those seen so far."""
        self.terms = tuple(dict.fromkeys((*state["terms"], *self._given_terms)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Load buffers of any length."""
        for name in self.FIRST:
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.dim() == 1:
                setattr(self, name, torch.zeros_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def scatter_with_nan(values: Tensor, positions: list[int], length: int) -> Tensor:
    """Return a vector of ``length`` with ``values`` at their ``positions`` and NaN elsewhere."""
    if positions == list(range(length)):
        return values
    absent = values.new_full((), math.nan)
    return torch.stack([values[positions.index(i)] if i in positions else absent for i in range(length)])


def measure(sums: Tensor, counts: Tensor, losses: Tensor, batches: int, least: float) -> None:
    """Add ``losses`` to ``sums`` and count them, in place, where fewer than ``batches`` are in. All are ``[K]``.

    Losses that are not finite, or below ``least``, are not measured.
    """
    measured = (counts < batches) & (losses >= least) & losses.isfinite()
    sums += torch.where(measured, losses, 0.0)
    counts += measured


def softmax_where(present: Tensor, logits: Tensor) -> Tensor:
    """Return the softmax of ``logits`` over the elements that are ``present``, and 0 elsewhere."""
    largest = torch.finfo(logits.dtype).max
    shown = torch.where(present, logits.clamp(-largest, largest), -math.inf)
    return torch.where(present, shown.softmax(dim=0), 0.0)
