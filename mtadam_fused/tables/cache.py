"""Keeps an optimizer's tables current with its parameters, its state and its terms."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from itertools import chain
from operator import is_, methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributed.dtensor import to_local, to_locals
from ..reference import arithmetic_type
from .layout import State, StateLayout, TermGradients, fit_gradients, grow_state, memory_of, moments
from .param_table import ParamTable


class Layout(NamedTuple):
    """What tables depend on besides the state."""

    terms: int
    groups: list[tuple[int, bool]]  # of each the number of parameters, and AMSGrad
    memory: object  # of the parameters
    strides: list[tuple[int, ...]]


class ParamTableCache:
    """Build the tables of one optimizer, and rebuild them when what they were built from has changed."""

    def __init__(self, state_layout: StateLayout) -> None:
        self._state_layout = state_layout
        self._has_shards = True  # whether any parameter may be a DTensor
        self._tables: list[ParamTable] = []
        self._layout: Layout | None = None
        self._state_values: list[Any] = []
        self._sampled_pointers: list[int] = []
        self._has_state: list[list[bool]] = []  # [K][parameters]
        self._all_have_state = False

    def get(
        self,
        groups: list[dict[str, Any]],
        state: MutableMapping[Tensor, State],
        grads: TermGradients,
        before: Callable[[], None] = lambda: None,
        fitted_memory: Sequence[object] = (),
    ) -> list[ParamTable]:
        """Return the tables of ``groups``, with state for every pair that ``grads`` ([K][parameters]) reaches.

        Allocates missing state, filled with zeros. Moves state and ``grads`` to the strides and the device of their
        parameter where these have changed. Calls ``before`` before it changes anything.

        Args:
            fitted_memory: what ``memory_of`` the parameters was when gradients were fitted to them. They may have got
                back since what they had before, so that the tables are current, and yet the gradients do not fit.

        Raises:
            RuntimeError: the gradients or the state of a parameter have another shape than the parameter.
        """
        params = [p for group in groups for p in group["params"]]
        layout = self._layout_of(groups, params, len(grads))
        fits = all(memory == layout.memory for memory in fitted_memory)
        if not (fits and self._is_current(layout, state) and self._have_state(grads)):
            fit_gradients(grads, to_locals(params))
            check_state(state, params)
            before()
            with torch.inference_mode(False):  # tables and state outlive the call
                self._build(groups, params, state, grads)
        return self._tables

    def _build(
        self,
        groups: list[dict[str, Any]],
        params: list[Tensor],
        state: MutableMapping[Tensor, State],
        grads: TermGradients,
    ) -> None:
        """Allocate missing state, and build the tables."""
        amsgrad = [group["amsgrad"] for group in groups for _ in group["params"]]
        for i, p in enumerate(params):
            terms = [k for k, row in enumerate(grads) if row[i] is not None]
            if terms or p in state:
                grow_state(state[p], p, terms, amsgrad[i], self._state_layout)
        self._layout = None  # after an interrupt nothing here is current
        self._tables = build_tables(groups, state, len(grads), self._state_layout)
        self._has_shards = any(table.has_shards for table in self._tables)
        states = param_states(state)
        self._state_values = list(iter_state_values(states))
        self._sampled_pointers = sample_pointers(states)
        names = [self._state_layout.exp_avg_sq_names([k])[0] for k in range(len(grads))]
        self._has_state = [[name in state.get(p, ()) for p in params] for name in names]
        self._all_have_state = all(map(all, self._has_state))
        self._layout = self._layout_of(groups, params, len(grads))

    def allocate(self, groups: list[dict[str, Any]], state: MutableMapping[Tensor, State], terms: int) -> None:
        """Allocate all state of the parameters that have a gradient in ``p.grad``, as if ``terms`` terms reached them.

        The kernels then take it as that of parameters that no term has reached yet.
        """
        for group in groups:
            for p in group["params"]:
                if p.grad is not None:
                    grow_state(state[p], p, range(terms), group["amsgrad"], self._state_layout)
        if terms:
            absent: list[Tensor | None] = [None for group in groups for _ in group["params"]]
            self.get(groups, state, [list(absent) for _ in range(terms)])  # which gives running norms their size

    def _is_current(self, layout: object, state: MutableMapping[Tensor, State]) -> bool:
        """Return whether the tables' addresses are still those of the parameters and of the state."""
        states = param_states(state)
        same_number = sum(map(len, states)) == len(self._state_values)
        return (
            same_number
            and self._layout == layout
            and all(map(is_, iter_state_values(states), self._state_values))
            and self._sampled_pointers == sample_pointers(states)
        )

    def _layout_of(self, groups: list[dict[str, Any]], params: list[Tensor], terms: int) -> Layout:
        """Return what the tables depend on besides the state."""
        sizes = [(len(group["params"]), group["amsgrad"]) for group in groups]
        local = to_locals(params) if self._has_shards else params
        return Layout(terms, sizes, memory_of(local), [p.stride() for p in local])

    def _have_state(self, grads: TermGradients) -> bool:
        """Return whether every pair that has a gradient has its state."""
        if self._all_have_state:
            return True
        pairs = zip(chain.from_iterable(grads), chain.from_iterable(self._has_state), strict=True)
        return all(has_state for grad, has_state in pairs if grad is not None)


def param_states(state: MutableMapping[Tensor, State]) -> list[State]:
    """Return the states of parameters. Leaves out what users, and hooks, have put beside them that is no dict."""
    return [value for value in state.values() if isinstance(value, dict)]


def iter_state_values(states: list[State]) -> Iterator[Any]:
    """Iterate over all values of the parameters' states, also those that users have added."""
    return chain.from_iterable(map(methodcaller("values"), states))


def sample_pointers(states: list[State]) -> list[int]:
    """Return the data pointers of the first parameter's state. Checking all would cost as much as the step.

    Whatever moves state to other memory in place (``share_memory_``, a loop over the state) moves all of it.
    """
    first = next((state for state in states if "step" in state), {}).values()
    return [to_local(value).data_ptr() for value in first if isinstance(value, Tensor)]


def check_state(state: MutableMapping[Tensor, State], params: list[Tensor]) -> None:
    """Raise RuntimeError for a parameter that has another shape than its state."""
    for i, p in enumerate(params):
        for name in moments(state.get(p, {})):
            if state[p][name].shape != p.shape:
                raise RuntimeError(
                    f"parameter {i} has shape {tuple(p.shape)}, but its state {name} has shape "
                    f"{tuple(state[p][name].shape)}; to begin with new state, `del optimizer.state[parameter]`"
                )


def build_tables(
    groups: list[dict[str, Any]], state: MutableMapping[Tensor, State], terms: int, state_layout: StateLayout
) -> list[ParamTable]:
    """Build one table per device and arithmetic dtype of the parameters of ``groups``."""
    members: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor, int]]] = {}
    position = 0
    for group_index, group in enumerate(groups):
        for p in group["params"]:
            members.setdefault((p.device, arithmetic_type(p.dtype)), []).append((position, p, group_index))
            position += 1
    return [
        ParamTable(
            device=device,
            dtype=dtype,
            terms=terms,
            layout=state_layout,
            positions=[position for position, _, _ in rows],
            params=[p for _, p, _ in rows],
            group_indices=[group_index for _, _, group_index in rows],
            states=[state.get(p, {}) for _, p, _ in rows],
            amsgrad=[groups[group_index]["amsgrad"] for _, _, group_index in rows],
        )
        for (device, dtype), rows in members.items()
    ]
