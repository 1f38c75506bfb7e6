"""The native kernels of rules: one launch in the place of many small operations.

The torch code of what has a kernel is its definition. It runs where there is no kernel: on other devices, for more
terms than a kernel takes, under torch.compile, and on tensors without memory of their own, such as those of
FakeTensorMode.
"""

from array import array
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..backends import cuda, native
from ..backends.device import made_current

Kernel = Callable[[array], None]


def kernel_for(name: str, gram: Tensor) -> Kernel | None:
    """Return a kernel for dot products like ``gram``, or None where the torch code is to run.

    It takes a buffer that holds its arguments as csrc/launch.h lists them.
    """
    module, device = native.module, gram.device
    if not hasattr(module, name) or len(gram) > module.MOST_RULE_TERMS or torch.compiler.is_compiling():
        return None
    if type(gram) is not Tensor or gram.dtype != torch.float64 or gram.requires_grad:
        return None
    if device.type == "cpu":
        return getattr(module, name)
    return partial(launch, f"cuda_{name}", device) if device.type == "cuda" and runs_on(module, device) else None


@cache
def runs_on(module: Any, device: torch.device) -> bool:
    """Return whether the CUDA kernels of ``module``, the native one, run on ``device``."""
    return cuda.status(device)[0]


def launch(name: str, device: torch.device, args: array) -> None:
    """Launch a CUDA kernel on the current stream of ``device``."""
    with made_current(device):
        getattr(native.module, name)(args, device.index, torch.cuda.current_stream(device).cuda_stream)
