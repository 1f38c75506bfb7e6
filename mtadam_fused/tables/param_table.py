"""Optimizer state laid out for the kernels: one table per device and arithmetic dtype, one row per parameter.

``optimizer.state`` stays the state that users and checkpoints see. A table holds the same tensors. It packs the small
ones (step counts and running norms), so that one kernel reads them all, and collects the addresses of the large ones.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

from ..distributed.dtensor import (
    all_reduce_sum_,
    describe_placement,
    group_ranks,
    is_dtensor,
    is_partial,
    shard_process_groups,
    to_local,
    to_locals,
)
from .layout import State, StateLayout, dense_like

# Storage dtypes and their codes in csrc/launch.h.
STORAGE_TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# Members of ``Row`` in csrc/launch.h.
ROW_FIELDS = ("param", "exp_avg", "numel", "group", "param_type")

Moments = list[list[Tensor | None]]  # [K or 1][L], None where there is none


@dataclass(eq=False)
class ParamTable:
    """L parameters of one device and arithmetic dtype, with the state of K terms; built by ``ParamTableCache``."""

    device: torch.device
    dtype: torch.dtype  # of the arithmetic
    terms: int
    layout: StateLayout
    positions: list[int]  # [L] of the parameters in the optimizer
    params: list[Tensor]  # [L]
    group_indices: list[int]  # [L] of the parameter groups
    states: list[State]  # [L] empty where no term has reached the parameter
    amsgrad: list[bool]  # [L]

    steps: Tensor = field(init=False)  # [L] float32
    norm_avg: Tensor = field(init=False)  # [L, K] running norms, NaN before the first
    norms: Tensor = field(init=False)  # [L, K] gradient norms of the last step, NaN where absent
    scales: Tensor = field(init=False)  # [L, K] applied to the gradients in the last step
    local_params: list[Tensor] = field(init=False)  # [L] the parameters, or the local tensors of DTensors
    dense: list[Tensor] = field(init=False)  # [L] the local parameters, or dense buffers for those with gaps
    needs_copy: list[int] = field(init=False)  # rows of the parameters with gaps

    def __post_init__(self) -> None:
        """Pack step counts and running norms, and replace them in the states by views of their rows."""
        size = (len(self.params), self.terms)
        self.steps = torch.zeros(size[0], dtype=torch.float32, device=self.device)
        self.norm_avg, self.norms, self.scales = (
            torch.full(size, math.nan, dtype=self.dtype, device=self.device) for _ in range(3)
        )
        for row, state in enumerate(self.states):
            if state:
                self.steps[row] = state["step"]
                state["step"] = self.steps[row]
            if "norm_avg" in state:
                self.norm_avg[row, : len(state["norm_avg"])] = state["norm_avg"]
                state["norm_avg"] = self.norm_avg[row]
        self.local_params = to_locals(self.params)
        self.dense = [dense_like(p, p.detach(), p.dtype) for p in self.local_params]
        self.needs_copy = [row for row, p in enumerate(self.local_params) if p.data_ptr() != self.dense[row].data_ptr()]

    @cached_property
    def gram(self) -> Tensor:
        """[L, K, K] float64: dot products of the last step's gradients, 0 where either is absent."""
        return torch.zeros((len(self.params), self.terms, self.terms), dtype=torch.float64, device=self.device)

    # -- sharded parameters --------------------------------------------------------------------------------------------

    @cached_property
    def has_shards(self) -> bool:
        """True if any parameter is a DTensor."""
        return any(map(is_dtensor, self.params))

    def all_reduce_norms(self) -> None:
        """Turn the norms of local gradients into norms of the full gradients, in place."""
        self.norms.copy_(self._all_reduce(self.norms.double().square()).sqrt())

    def all_reduce_gram(self) -> None:
        """Turn the dot products of local gradients into those of the full gradients, in place."""
        if self.has_shards:
            self._all_reduce(self.gram)

    def _all_reduce(self, values: Tensor) -> Tensor:
        """Sum ``values`` [L, ...], row by row, over the processes that hold other shards, in place; return them."""
        for process_groups, rows in self._rows_by_process_groups:
            values[rows] = all_reduce_sum_(values[rows], process_groups)
        return values

    def sum_over_rows(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` [L, ...] over rows and over the processes that hold other shards."""
        sums = (
            all_reduce_sum_(values[rows].sum(dim=0), process_groups)
            for process_groups, rows in self._rows_by_process_groups
        )
        return reduce(torch.add, sums)

    @cached_property
    def _rows_by_process_groups(self) -> list[tuple[tuple[Any, ...], Any]]:
        """Process groups, and the rows of the parameters that are sharded over them."""
        found: dict[object, tuple[tuple[Any, ...], list[int]]] = {}
        for row, p in enumerate(self.params):
            process_groups = shard_process_groups(p)
            found.setdefault(group_ranks(process_groups), (process_groups, []))[1].append(row)
        if len(found) == 1:
            return [(process_groups, slice(None)) for process_groups, _ in found.values()]
        return [(process_groups, torch.tensor(rows, device=self.device)) for process_groups, rows in found.values()]

    # -- state and addresses for the kernels ---------------------------------------------------------------------------

    @cached_property
    def exp_avg_sqs(self) -> Moments:
        """[moments][L] second moments."""
        names = self.layout.exp_avg_sq_names(range(self.terms))
        return [[to_local(state.get(name)) for state in self.states] for name in names]

    @cached_property
    def max_exp_avg_sqs(self) -> Moments:
        """[moments][L] maxima of the second moments where AMSGrad is on; they stay in the state when it is off."""
        names = self.layout.exp_avg_sq_names(range(self.terms))
        maxima = [[to_local(state.get(f"max_{name}")) for state in self.states] for name in names]
        return [[m if on else None for m, on in zip(row, self.amsgrad, strict=True)] for row in maxima]

    @cached_property
    def row_table(self) -> array:
        """``Row`` of csrc/launch.h, for each parameter."""
        table = array("q")
        for dense, state, group in zip(self.dense, self.states, self.group_indices, strict=True):
            exp_avg = to_local(state["exp_avg"]).data_ptr() if state else 0
            table.extend((dense.data_ptr(), exp_avg, dense.numel(), group, STORAGE_TYPES[dense.dtype]))
        return table

    @cached_property
    def exp_avg_sq_table(self) -> array:
        """[moments, L] addresses."""
        return addresses(self.exp_avg_sqs)

    @cached_property
    def max_exp_avg_sq_table(self) -> array:
        """[moments, L] addresses."""
        return addresses(self.max_exp_avg_sqs)

    @cached_property
    def param_types(self) -> array:
        """[L] codes of STORAGE_TYPES."""
        return array("q", [STORAGE_TYPES[p.dtype] for p in self.params])

    @cached_property
    def has_narrow_params(self) -> bool:
        """True if any parameter has a narrower dtype than the arithmetic; its gradients can have either."""
        return any(p.dtype != self.dtype for p in self.params)

    @cached_property
    def null_addresses(self) -> array:
        """[L] zeros."""
        return array("q", bytes(8 * len(self.params)))


def check_param(position: int, param: Any) -> None:
    """Raise TypeError for a parameter that the kernels cannot update."""
    if not isinstance(param, Tensor):
        raise TypeError(
            f"params[{position}] is a {type(param).__name__}; it must be a Tensor, as from model.parameters()"
        )
    if param.dtype not in STORAGE_TYPES or param.layout != torch.strided:
        supported = ", ".join(str(dtype) for dtype in STORAGE_TYPES)
        raise TypeError(f"params[{position}] is {param.dtype}, {param.layout}; it must be dense and one of {supported}")
    if is_partial(param):
        raise TypeError(
            f"params[{position}] is {describe_placement(param)}; redistribute it first, which makes the pending sum"
        )


def addresses(tensors: Sequence[Sequence[Tensor | None]]) -> array:
    """Return the addresses of tensors, row after row, 0 for None."""
    return array("q", [0 if t is None else t.data_ptr() or address_of_empty(t) for row in tensors for t in row])


def address_of_empty(tensor: Tensor) -> int:
    """Return an address that is not 0, and never read, for an empty tensor.

    Raises:
        RuntimeError: the tensor should have memory (the address of a DTensor is 0, for one).
    """
    if tensor.numel():
        raise RuntimeError(
            f"a {type(tensor).__name__} of shape {tuple(tensor.shape)} has no memory that kernels can read"
        )
    return 1
