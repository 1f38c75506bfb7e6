"""Keeps an optimizer's tables in step with its parameters, its state and the terms that reach them."""

from collections.abc import MutableMapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .reference import arithmetic_type
from .table import State, Table, TermGradients, grow_state, second_moments


class Tables:
    """The tables of one optimizer, rebuilt when something that they were built from has changed.

    Args:
        per_term: whether each term has running norms and a second moment of its own.
    """

    def __init__(self, per_term: bool) -> None:
        self._per_term = per_term
        self._tables: list[Table] = []
        self._signature: object = None
        self._held: list[Tensor] = []  # keeps the tensors behind the signature's ids alive, so that no id is used twice
        self._reached: list[list[bool]] = []  # [K][parameters] whether the pair has state
        self._present: list[list[bool]] = []  # [K][parameters] the last call's pairs, known to have state

    def current(
        self, groups: list[dict[str, Any]], state: MutableMapping[Tensor, State], grads: TermGradients
    ) -> list[Table]:
        """The tables of ``groups``, with state for every pair that ``grads`` ([K][parameters]) reaches.

        State that is missing is allocated, with zeros; state follows its parameter to another layout or device.
        """
        params = [p for group in groups for p in group["params"]]
        present = [[grad is not None for grad in row] for row in grads]
        same = self._signature == signature(groups, params, state, len(grads))
        if not same or (present != self._present and not self._covers(present)):
            amsgrad = [group["amsgrad"] for group in groups for _ in group["params"]]
            for i, p in enumerate(params):
                reached = [k for k, row in enumerate(grads) if row[i] is not None]
                if reached or p in state:
                    grow_state(state[p], p, reached, amsgrad[i], self._per_term)
            self._tables = build_tables(groups, state, len(grads), self._per_term)
            self._signature = signature(groups, params, state, len(grads))
            self._held = [value for of_param in state.values() for value in of_param.values()]
            names = [second_moments([k], self._per_term)[0] for k in range(len(grads))]
            self._reached = [[name in state.get(p, ()) for p in params] for name in names]
        self._present = present
        return self._tables

    def _covers(self, present: list[list[bool]]) -> bool:
        """Whether every pair that is present has its state."""
        pairs = zip(chain.from_iterable(present), chain.from_iterable(self._reached), strict=True)
        return all(has for is_present, has in pairs if is_present)


def signature(
    groups: list[dict[str, Any]], params: list[Tensor], state: MutableMapping[Tensor, State], terms: int
) -> object:
    """What the addresses in the tables depend on."""
    return (
        terms,
        [(len(group["params"]), group["amsgrad"]) for group in groups],
        [(p.data_ptr(), p.stride()) for p in params],
        [id(value) for of_param in state.values() for value in of_param.values()],
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
