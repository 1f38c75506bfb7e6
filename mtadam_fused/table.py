"""The state of an optimizer laid out for the kernels: one table per device and arithmetic type, one row per parameter.

``optimizer.state`` stays the truth that users and checkpoints see. A table holds the same tensors, the small ones (step
counts and running norms) packed so that one kernel reads them all, and the addresses of the large ones, collected once.
"""

import math
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .hyperparameters import Hyperparameters
from .reference import arithmetic_type
from .shards import groups_over, is_spread, part, parts, ranks_of, spread_like, summed

# Storage types and their codes in csrc/launch.h.
STORAGE_TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

_MOMENT = re.compile(r"(max_exp_avg_sq|exp_avg_sq|exp_avg)(\d*)")

State = dict[str, Any]
TermGradients = list[list[Tensor | None]]  # [K][parameters]
Moments = list[list[Tensor | None]]  # [K or 1][L], None where there is none


def dense_like(like: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` in the memory layout of ``like`` (made dense where it has gaps); a copy only where it has to be."""
    if is_spread(like):
        own = part(value)
        dense = dense_like(part(like), own, dtype)
        return value if dense is own else spread_like(like, dense)
    layout = torch.empty_like(like, dtype=dtype, device="meta")
    same_place = value.device == like.device and value.stride() == layout.stride()
    if value.dtype == dtype and same_place and not value.is_neg():  # a bit that says: what is in memory, negated
        return value
    return torch.empty_like(like, dtype=dtype, requires_grad=False).copy_(value)


def moments(state: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The names of the moments in a state, each split into kind and term number (-1 where it has none)."""
    found = ((name, _MOMENT.fullmatch(name)) for name in state)
    return {name: (match[1], int(match[2] or -1)) for name, match in found if match}


def second_moments(terms: Iterable[int], per_term: bool) -> list[str]:
    """Names of the second moments that ``terms`` have in a state: one each, or one for all."""
    return [f"exp_avg_sq{k}" for k in terms] if per_term else ["exp_avg_sq"]


def grow_state(state: State, param: Tensor, reached: Sequence[int], amsgrad: bool, per_term: bool) -> None:
    """Gives ``param`` the state it lacks for the terms ``reached``; what is there stays, in the layout of ``param``."""
    dtype = arithmetic_type(param.dtype)

    def zeros() -> Tensor:
        return torch.zeros_like(param, dtype=dtype, requires_grad=False)

    state.setdefault("step", torch.zeros((), dtype=torch.float32, device=param.device))
    if per_term:
        state.setdefault("norms", torch.empty(0, dtype=dtype, device=param.device))
    for name in ("exp_avg", *second_moments(reached, per_term)):
        if name not in state:
            state[name] = zeros()
    for name in moments(state):
        state[name] = dense_like(param, state[name], dtype)
    if amsgrad:
        for name in [name for name in moments(state) if name.startswith("exp_avg_sq")]:
            if f"max_{name}" not in state:
                state[f"max_{name}"] = zeros()


@dataclass(eq=False)
class Table:
    """L parameters of one device and arithmetic type, with the state of K terms; built by ``Tables``."""

    device: torch.device
    dtype: torch.dtype  # of the arithmetic
    terms: int
    per_term: bool  # whether each term has running norms and a second moment of its own
    rows: list[int]  # [L] the parameters' positions in the optimizer
    params: list[Tensor]  # as users have them
    groups: list[int]  # [L] the parameters' groups
    states: list[State]  # [L] empty where no term has reached the parameter
    amsgrad: list[bool]  # [L]

    steps: Tensor = field(init=False)  # [L] float32
    running: Tensor = field(init=False)  # [L, K] running norms, NaN before the first
    norms: Tensor = field(init=False)  # [L, K] of the last step, NaN where absent
    scales: Tensor = field(init=False)  # [L, K] what the last step multiplied the gradients by
    parts: list[Tensor] = field(init=False)  # [L] the parameters, or of those that are spread this process' part
    dense: list[Tensor] = field(init=False)  # [L] the same, or dense buffers for those with gaps
    staged: list[int] = field(init=False)  # rows of the parameters with gaps

    def __post_init__(self) -> None:
        """Packs steps and running norms, and points the states at their rows."""
        size = (len(self.params), self.terms)
        self.steps = torch.zeros(size[0], dtype=torch.float32, device=self.device)
        self.running, self.norms, self.scales = (
            torch.full(size, math.nan, dtype=self.dtype, device=self.device) for _ in range(3)
        )
        for row, state in enumerate(self.states):
            if state:
                self.steps[row] = state["step"]
                state["step"] = self.steps[row]
            if "norms" in state:
                self.running[row, : len(state["norms"])] = state["norms"]
                state["norms"] = self.running[row]
        self.parts = parts(self.params)
        self.dense = [dense_like(p, p.detach(), p.dtype) for p in self.parts]
        self.staged = [row for row, p in enumerate(self.parts) if p.data_ptr() != self.dense[row].data_ptr()]

    @cached_property
    def gram(self) -> Tensor:
        """[L, K, K] float64: dot products of the last step's gradients, 0 where either is absent."""
        return torch.zeros((len(self.params), self.terms, self.terms), dtype=torch.float64, device=self.device)

    @cached_property
    def is_spread(self) -> bool:
        """Whether any parameter has parts in other processes."""
        return any(map(is_spread, self.params))

    def make_norms_whole(self) -> None:
        """Makes ``norms`` of parts those of whole gradients."""
        for groups, rows in self._rows_of_groups:
            squares = self.norms[rows].double().square()
            self.norms[rows] = summed(squares, groups).sqrt().to(self.dtype)

    def over_rows(self, values: Tensor) -> Tensor:
        """The sum over rows of ``values`` [L, ...], and over the processes that have parts of them."""
        return reduce(torch.add, (summed(values[rows].sum(dim=0), groups) for groups, rows in self._rows_of_groups))

    @cached_property
    def _rows_of_groups(self) -> list[tuple[tuple[Any, ...], Any]]:
        """Process groups, and the rows of the parameters of which these have parts."""
        found: dict[object, tuple[tuple[Any, ...], list[int]]] = {}
        for row, p in enumerate(self.params):
            groups = groups_over(p)
            found.setdefault(ranks_of(groups), (groups, []))[1].append(row)
        if len(found) == 1:
            return [(groups, slice(None)) for groups, _ in found.values()]
        return [(groups, torch.tensor(rows, device=self.device)) for groups, rows in found.values()]

    @cached_property
    def exp_avg_sqs(self) -> Moments:
        names = second_moments(range(self.terms), self.per_term)
        return [[part(state.get(name)) for state in self.states] for name in names]

    @cached_property
    def max_exp_avg_sqs(self) -> Moments:
        names = second_moments(range(self.terms), self.per_term)
        maxima = [[part(state.get(f"max_{name}")) for state in self.states] for name in names]
        # They stay in the state when AMSGrad is turned off.
        return [[m if on else None for m, on in zip(row, self.amsgrad, strict=True)] for row in maxima]

    @cached_property
    def row_table(self) -> array:
        """``Row`` of csrc/launch.h, for each parameter."""
        table = array("q")
        for dense, state, group in zip(self.dense, self.states, self.groups, strict=True):
            exp_avg = part(state["exp_avg"]).data_ptr() if state else 0
            table.extend((dense.data_ptr(), exp_avg, dense.numel(), group, STORAGE_TYPES[dense.dtype]))
        return table

    @cached_property
    def second_table(self) -> array:
        return addresses(self.exp_avg_sqs)

    @cached_property
    def maximum_table(self) -> array:
        return addresses(self.max_exp_avg_sqs)

    @cached_property
    def param_types(self) -> array:
        return array("q", [STORAGE_TYPES[p.dtype] for p in self.params])

    @cached_property
    def is_narrow(self) -> bool:
        """Whether any parameter is of a type narrower than the arithmetic: then gradients can be of either."""
        return any(p.dtype != self.dtype for p in self.params)

    @cached_property
    def no_addresses(self) -> array:
        return array("q", bytes(8 * len(self.params)))


def addresses(tensors: Sequence[Sequence[Tensor | None]]) -> array:
    """The addresses of tensors, row after row, 0 for None."""
    return array("q", [0 if t is None else t.data_ptr() or no_memory(t) for row in tensors for t in row])


def no_memory(tensor: Tensor) -> int:
    """An address that is not 0, and never read, for an empty tensor.

    Raises:
        RuntimeError: the tensor should have memory (a DTensor's address is 0, for one).
    """
    if tensor.numel():
        raise RuntimeError(
            f"a {type(tensor).__name__} of shape {tuple(tensor.shape)} has no memory that kernels can read"
        )
    return 1


@dataclass
class Work:
    """One step of one table: what a backend is given."""

    table: Table
    grads: TermGradients  # [K][L], in the layouts of table.dense, None where absent
    groups: Sequence[Hyperparameters]
    weights: list[list[float]]  # [groups][K] the user's
    combined: list[Tensor | None] | None = None  # [L] where the combined gradients go, of the parameters' types

    @cached_property
    def reached(self) -> list[bool]:
        """[L] whether any term reaches the parameter."""
        first, *others = self.grads
        reached = [grad is not None for grad in first]
        for row in others:
            if all(reached):
                break
            reached = [known or grad is not None for known, grad in zip(reached, row, strict=True)]
        return reached

    @cached_property
    def group_table(self) -> array:
        """``Group`` of csrc/launch.h, for each group; a learning rate that lies on a device is left NaN."""
        table = array("d")
        for group in self.groups:
            lr = math.nan if self.has_lr_on_device(group) else float(group.lr)
            l2, decoupled = (0.0, group.weight_decay) if group.decoupled_weight_decay else (group.weight_decay, 0.0)
            direction = -1.0 if group.maximize else 1.0
            beta3, first_nonzero = group.norm_rule
            table.extend((lr, *group.betas[:2], beta3, group.eps, l2, decoupled, direction, first_nonzero))
        return table

    @cached_property
    def weight_table(self) -> array:
        """[groups, K]"""
        return array("d", chain.from_iterable(self.weights))

    def has_lr_on_device(self, group: Hyperparameters) -> bool:
        """Whether the group's learning rate is a Tensor on the table's device, not the CPU: no host must read it."""
        device = self.table.device
        return isinstance(group.lr, Tensor) and group.lr.device == device and device.type != "cpu"

    @property
    def staged(self) -> list[int]:
        """The rows of the parameters with gaps that any term reaches."""
        return [row for row in self.table.staged if self.reached[row]]
