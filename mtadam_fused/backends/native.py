"""The native module, and how a table's step is packed for it (see csrc/launch.h)."""

import math
from array import array
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..hyperparameters import Hyperparameters
from ..table import STORAGE_TYPES, Work, addresses

GROUP_FIELDS = 9  # doubles of a Group in csrc/launch.h

module: Any = None
problem: ImportError | None = None
try:
    module = import_module("mtadam_fused._C")
except ImportError as error:
    problem = error


def why_missing() -> str:
    """Why there is no native module, in words."""
    if isinstance(problem, ModuleNotFoundError):
        missing = "a C++ compiler (g++) and Python's headers (python3-dev)"
        return f"the native module was not built: install {missing}, then reinstall mtadam_fused"
    return f"the native module does not load: {problem}"


def packed(work: Work) -> tuple[bool, Any]:
    """The first arguments of every native kernel: whether the arithmetic is float64, and the step."""
    table = work.table
    types = grad_types(work)  # before the addresses: it may replace gradients
    step = module.Step(
        len(table.params),
        table.terms,
        len(table.exp_avg_sqs),
        len(work.groups),
        table.row_table,
        group_table(work.groups, table.device),
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
        0 if table.per_term else table.gram.data_ptr(),
    )
    return table.dtype == torch.float64, step


def is_on_device(lr: float | Tensor, device: torch.device) -> bool:
    """Whether ``lr`` is a Tensor on ``device``, other than the CPU: then the host must not read it."""
    return isinstance(lr, Tensor) and lr.device == device and device.type != "cpu"


def group_table(groups: Sequence[Hyperparameters], device: torch.device) -> array:
    """``Group`` of csrc/launch.h, for each group; a learning rate that lies on ``device`` is left NaN."""
    table = array("d")
    for group in groups:
        lr = math.nan if is_on_device(group.lr, device) else float(group.lr)
        l2, decoupled = (0.0, group.weight_decay) if group.decoupled_weight_decay else (group.weight_decay, 0.0)
        direction = -1.0 if group.maximize else 1.0
        beta3, first_nonzero = group.norm_rule
        table.extend((lr, *group.betas[:2], beta3, group.eps, l2, decoupled, direction, first_nonzero))
    return table


def grad_types(work: Work) -> array:
    """The storage type of each row's gradients. Where the terms of a row differ, all are made float32."""
    table = work.table
    if not table.is_narrow:
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
