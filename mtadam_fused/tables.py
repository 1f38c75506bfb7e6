"""Keeps an optimizer's tables in step with its parameters, its state and the terms that reach them."""

from collections.abc import Callable, Iterator, MutableMapping
from itertools import chain
from operator import is_, methodcaller
from typing import Any

import torch
from torch import Tensor

from .reference import arithmetic_type
from .shards import part, parts
from .table import State, Table, TermGradients, grow_state, moments, second_moments
from .term_gradients import fit_gradients


class Tables:
    """The tables of one optimizer, rebuilt when something that they were built from has changed.

    Args:
        per_term: whether each term has running norms and a second moment of its own.
    """

    def __init__(self, per_term: bool) -> None:
        self._per_term = per_term
        self._is_spread = True  # whether any parameter may have parts in other processes
        self._tables: list[Table] = []
        self._layout: object = None
        self._held: list[Any] = []  # the state's tensors
        self._sampled: list[int] = []
        self._reached: list[list[bool]] = []  # [K][parameters] whether the pair has state
        self._all_reached = False

    def current(
        self,
        groups: list[dict[str, Any]],
        state: MutableMapping[Tensor, State],
        grads: TermGradients,
        before: Callable[[], None] = lambda: None,
    ) -> list[Table]:
        """The tables of ``groups``, with state for every pair that ``grads`` ([K][parameters]) reaches.

        State that is missing is allocated, with zeros; state follows its parameter to another layout or device, and so
        do ``grads``. ``before`` is called before anything of this changes.

        Raises:
            RuntimeError: a parameter whose gradients or state are of another shape.
        """
        params = [p for group in groups for p in group["params"]]
        if not (self._are_of(groups, params, state, len(grads)) and self._cover(grads)):
            fit_gradients(grads, parts(params))
            check_state(state, params)
            before()
            amsgrad = [group["amsgrad"] for group in groups for _ in group["params"]]
            for i, p in enumerate(params):
                reached = [k for k, row in enumerate(grads) if row[i] is not None]
                if reached or p in state:
                    grow_state(state[p], p, reached, amsgrad[i], self._per_term)
            self._tables = build_tables(groups, state, len(grads), self._per_term)
            self._is_spread = any(table.is_spread for table in self._tables)
            self._layout = self._layout_of(groups, params, len(grads))
            self._held = list(values_of(state))
            self._sampled = addresses_of_one(state)
            names = [second_moments([k], self._per_term)[0] for k in range(len(grads))]
            self._reached = [[name in state.get(p, ()) for p in params] for name in names]
            self._all_reached = all(map(all, self._reached))
        return self._tables

    def _are_of(
        self, groups: list[dict[str, Any]], params: list[Tensor], state: MutableMapping[Tensor, State], terms: int
    ) -> bool:
        """Whether the addresses in the tables are still those of the parameters and of the state."""
        same_number = sum(map(len, state.values())) == len(self._held)
        return (
            same_number
            and self._layout == self._layout_of(groups, params, terms)
            and all(map(is_, values_of(state), self._held))
            and self._sampled == addresses_of_one(state)
        )

    def _layout_of(self, groups: list[dict[str, Any]], params: list[Tensor], terms: int) -> object:
        """What the tables depend on besides the state."""
        sizes = [(len(group["params"]), group["amsgrad"]) for group in groups]
        own = parts(params) if self._is_spread else params
        return terms, sizes, [p.data_ptr() for p in own], [p.stride() for p in own], [p.numel() for p in own]

    def _cover(self, grads: TermGradients) -> bool:
        """Whether every pair that has a gradient has its state."""
        if self._all_reached:
            return True
        pairs = zip(chain.from_iterable(grads), chain.from_iterable(self._reached), strict=True)
        return all(has for grad, has in pairs if grad is not None)


def values_of(state: MutableMapping[Tensor, State]) -> Iterator[Any]:
    """All tensors of an optimizer's state, and what users have put beside them."""
    return chain.from_iterable(map(methodcaller("values"), state.values()))


def addresses_of_one(state: MutableMapping[Tensor, State]) -> list[int]:
    """Those of the first parameter's tensors. To look at all would take as long as the rest of a step; what gives the
    tensors of a state other memory (``share_memory_``, a loop that moves them) does it to all."""
    first = next(iter(state.values()), {}).values()
    return [part(value).data_ptr() for value in first if isinstance(value, Tensor)]


def check_state(state: MutableMapping[Tensor, State], params: list[Tensor]) -> None:
    """Raises RuntimeError for a parameter that has another shape than its state."""
    for i, p in enumerate(params):
        for name in moments(state.get(p, {})):
            if state[p][name].shape != p.shape:
                raise RuntimeError(
                    f"parameter {i} has shape {tuple(p.shape)}, its state {name} {tuple(state[p][name].shape)}; to "
                    "begin with new state, `del optimizer.state[parameter]`"
                )


def build_tables(
    groups: list[dict[str, Any]], state: MutableMapping[Tensor, State], terms: int, per_term: bool
) -> list[Table]:
    """One table per device and arithmetic type of the parameters of ``groups``."""
    members: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor, int]]] = {}
    position = 0
    for number, group in enumerate(groups):
        for p in group["params"]:
            members.setdefault((p.device, arithmetic_type(p.dtype)), []).append((position, p, number))
            position += 1
    return [
        Table(
            device=device,
            dtype=dtype,
            terms=terms,
            per_term=per_term,
            rows=[position for position, _, _ in rows],
            params=[p for _, p, _ in rows],
            groups=[number for _, _, number in rows],
            states=[state.get(p, {}) for _, p, _ in rows],
            amsgrad=[groups[number]["amsgrad"] for _, _, number in rows],
        )
        for (device, dtype), rows in members.items()
    ]
