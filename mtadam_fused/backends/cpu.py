"""The native CPU kernels: packs a table's step into the arrays that ``mtadam_fused._C`` takes (see csrc/launch.h)."""

from array import array
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from typing import Any

import torch

from ..hyperparameters import Hyperparameters
from ..table import STORAGE_TYPES, Work, addresses

native: Any = None
problem: ImportError | None = None
try:
    native = import_module("mtadam_fused._C")
except ImportError as error:
    problem = error


def status() -> tuple[bool, str]:
    """Whether the native module is there, and its particulars or why it is not."""
    if native is not None:
        return (
            True,
            f"{native.instruction_set()} kernels on {native.threading()} threads, compiled by {native.compiler}",
        )
    if isinstance(problem, ModuleNotFoundError):
        return False, "the native module was not built: install a C++ compiler (g++), then reinstall mtadam_fused"
    return False, f"the native module does not load: {problem}"


class CpuBackend:
    """See :class:`mtadam_fused.backends.Backend`."""

    name = "cpu"

    def term_norms(self, work: Work) -> None:
        native.term_norms(*arguments(work))

    def balance(self, work: Work) -> None:
        native.balance(*arguments(work))

    def mtadam_update(self, work: Work) -> None:
        native.mtadam_update(*arguments(work))

    def mtadam_step(self, work: Work) -> None:
        native.mtadam_step(*arguments(work))


def arguments(work: Work) -> tuple:
    """The arguments of every native kernel."""
    table = work.table
    types = grad_types(work)  # before the addresses: it may replace gradients
    return (
        table.dtype == torch.float64,
        len(table.params),
        table.terms,
        len(work.groups),
        table.row_table,
        group_table(work.groups),
        array("d", chain.from_iterable(work.weights)),
        addresses(work.grads),
        types,
        table.second_table,
        table.maximum_table,
        table.no_addresses if work.combined is None else addresses([work.combined]),
        table.steps.data_ptr(),
        table.norms.data_ptr(),
        table.running.data_ptr(),
        table.scales.data_ptr(),
    )


def group_table(groups: Sequence[Hyperparameters]) -> array:
    """``Group`` of csrc/launch.h, for each group."""
    table = array("d")
    for group in groups:
        l2, decoupled = (0.0, group.weight_decay) if group.decoupled_weight_decay else (group.weight_decay, 0.0)
        direction = -1.0 if group.maximize else 1.0
        first_nonzero = group.norm_init == "first_nonzero"
        table.extend((float(group.lr), *group.betas, group.eps, l2, decoupled, direction, first_nonzero, group.amsgrad))
    return table


def grad_types(work: Work) -> array:
    """The storage type of each row's gradients. Where the terms of a row differ, all are made float32."""
    table = work.table
    if table.dtype == torch.float64 or all(p.dtype == torch.float32 for p in table.params):
        return table.param_types
    types = array("q", table.param_types)
    for row in range(len(types)):
        dtypes = {grad.dtype for term in work.grads if (grad := term[row]) is not None}
        if len(dtypes) > 1:
            for term in work.grads:
                term[row] = None if (grad := term[row]) is None else grad.float()
        if dtypes:
            types[row] = STORAGE_TYPES[torch.float32 if len(dtypes) > 1 else dtypes.pop()]
    return types
