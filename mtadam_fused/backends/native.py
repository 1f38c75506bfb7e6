"""The native module, and the buffers that its kernels take (see csrc/launch.h)."""

from array import array
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..tables.step_args import StepArgs

module: Any = None
problem: ImportError | None = None
try:
    module = import_module("mtadam_fused._C")
except ImportError as error:
    problem = error


def why_missing() -> str:
    """Return why there is no native module."""
    if isinstance(problem, ModuleNotFoundError):
        missing = "a C++ compiler (g++) and Python's headers (python3-dev)"
        return f"the native module was not built: {or_in_sources(f'install {missing}, then reinstall mtadam_fused')}"
    return f"the native module does not load: {problem}"


def or_in_sources(remedy: str) -> str:
    """Return ``remedy`` for a missing part of the package, and the usual one where Python took a checkout."""
    sources = Path(__file__).parents[2]
    if not (sources / "setup.py").exists():
        return remedy
    taken = f"Python took the sources in {sources}; start it in another folder if mtadam_fused is installed elsewhere"
    return f"{taken}, else {remedy}"


def run(kernel: str, args: StepArgs) -> None:
    """Run a CPU kernel of the module."""
    getattr(module, kernel)(args.table.dtype == torch.float64, pack(args.members()))


def pack(members: Mapping[str, int]) -> array:
    """Return a struct of csrc/launch.h as one flat buffer."""
    return array("q", members.values())
