"""The native module, and how a table's step is packed for it (see csrc/launch.h)."""

from array import array
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..tables.param_table import STORAGE_TYPES, addresses
from ..tables.step_args import StepArgs

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
        return f"the native module was not built: {or_in_sources(f'install {missing}, then reinstall mtadam_fused')}"
    return f"the native module does not load: {problem}"


def or_in_sources(remedy: str) -> str:
    """``remedy`` for a part of the package that is missing, and the usual one where the package is a checkout's."""
    sources = Path(__file__).parents[2]
    if not (sources / "setup.py").exists():
        return remedy
    taken = f"Python took the sources in {sources}; start it in another folder if mtadam_fused is installed elsewhere"
    return f"{taken}, else {remedy}"


def packed(args: StepArgs) -> tuple[bool, Any]:
    """The first arguments of every native kernel: whether the arithmetic is float64, and the step."""
    table = args.table
    types = grad_types(args)  # before the addresses: it may replace gradients
    step = module.Step(
        len(table.params),
        table.terms,
        len(table.exp_avg_sqs),
        len(args.groups),
        table.row_table,
        args.group_table,
        args.weight_table,
        addresses(args.grads),
        types,
        table.exp_avg_sq_table,
        table.max_exp_avg_sq_table,
        table.null_addresses if args.combined is None else addresses([args.combined]),
        table.steps.data_ptr(),
        table.norms.data_ptr(),
        table.norm_avg.data_ptr(),
        table.scales.data_ptr(),
        0 if table.per_term else table.gram.data_ptr(),
    )
    return table.dtype == torch.float64, step


def grad_types(args: StepArgs) -> array:
    """The storage type of each row's gradients. Where the terms of a row differ, all are made float32."""
    table = args.table
    if not table.has_narrow_params:
        return table.param_types
    types = array("q", table.param_types)
    for row in range(len(types)):
        dtypes = {grad.dtype for term in args.grads if (grad := term[row]) is not None}
        if len(dtypes) > 1:
            for term in args.grads:
                term[row] = None if (grad := term[row]) is None else grad.float()
        if dtypes:
            types[row] = STORAGE_TYPES[torch.float32 if len(dtypes) > 1 else dtypes.pop()]
    return types
