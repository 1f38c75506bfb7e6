"""The Triton kernels, for GPUs where the native CUDA kernels were not built, and for those of other vendors.

A step is three launches, and two more for each further type that parameters of one arithmetic type are stored in; no
synchronization with the host. Gradients' addresses are copied to the device in every step.
"""

import os
import re
import shutil
from array import array
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..tables.step_args import StepArgs
from .device import DeviceBuffers, Staging, made_current
from .native import or_in_sources

OLDEST = (3, 3)  # the first whose functions take tuples; torch 2.7 comes with it
WIDE = 1  # see triton_kernels/memory.py
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
DEVICE_TYPES = ("cpu",) if INTERPRETED else ("cuda", "xpu")


@cache
def load() -> tuple[Any, str]:
    """Return the module of the kernels, and Triton's version; or None, and why not."""
    wanted = f"install triton {'.'.join(map(str, OLDEST))} or newer"
    try:
        version = getattr(import_module("triton"), "__version__", "0")
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
            return None, f"Triton {version} is too old: {wanted}"
        return import_module("mtadam_fused.triton_kernels"), version
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return None, f"Triton is missing: {wanted}"
        return None, f"the Triton kernels do not load: {error}; {or_in_sources('reinstall mtadam_fused')}"
    except ImportError as error:
        return None, f"Triton does not load: {error}"


def status(device: torch.device | None = None) -> tuple[bool, str]:
    """Return whether the kernels can be used here, and their details or why not. ``device`` makes no difference."""
    kernels, found = load()
    if kernels is None:
        return False, found
    if INTERPRETED:
        return True, f"Triton {found} in its interpreter, on CPU parameters: slow, for debugging"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type not in DEVICE_TYPES:
        return False, f"Triton {found} is here, but torch sees no GPU; TRITON_INTERPRET=1 runs it on the CPU, slowly"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return False, f"Triton {found} needs a C compiler to launch kernels: install gcc, or name one in CC"
    return True, f"kernels compiled at the first step by Triton {found}"


def address_table(args: StepArgs) -> array:
    """Return addresses [terms + 1, rows]: of gradients, marked WIDE where wider than their parameter; of sums, or 0."""
    table = args.table
    rows = len(table.params)
    found = args.grad_table + args.combined_table
    types = zip(args.grad_types, table.param_types, strict=True) if table.has_narrow_params else ()
    for row, (grad_type, param_type) in enumerate(types):
        if grad_type != param_type:
            for pair in range(row, table.terms * rows, rows):
                found[pair] |= WIDE if found[pair] else 0
    return found


class TritonBuffers(DeviceBuffers):
    """The device memory of the Triton kernels: also the chunks, separately for each dtype of parameters."""

    def __init__(self, args: StepArgs) -> None:
        super().__init__(args)
        table = args.table
        language = import_module("triton.language")
        types = [p.dtype for p in table.params]
        self.typed_chunks: list[tuple[Any, Tensor]] = []
        for dtype in dict.fromkeys(types):
            of_type = torch.tensor([of_row == dtype for of_row in types], device="cpu")
            chunks = self.chunks[of_type[self.chunks[:, 0]]]
            if len(chunks):
                name = str(dtype).removeprefix("torch.")
                self.typed_chunks.append((getattr(language, name), chunks.to(table.device)))
        self.staging = Staging(address_table(args), table.device)
        # In the place of what only a GradScaler gives.
        self.zero = torch.zeros((), dtype=torch.float32, device=table.device)
        self.one = torch.ones((), dtype=torch.float32, device=table.device)

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.zero, self.one, *(chunks for _, chunks in self.typed_chunks)]


class StepLauncher:
    """Launch the kernels of one step, on the current stream of its device, which is the current one."""

    def __init__(self, args: StepArgs, buffers: TritonBuffers, kernels: Any) -> None:
        self._args, self._buffers, self._kernels = args, buffers, kernels
        self._grads = buffers.staging(address_table(args)).to(args.table.device, non_blocking=True)
        self._size = (len(args.table.params), args.table.terms)
        self._width = 1 << (args.table.terms - 1).bit_length()
        self._grad_scale = buffers.one if args.grad_scale is None else args.grad_scale
        self._found_inf = buffers.zero if args.found_inf is None else args.found_inf

    @cached_property
    def _hyperparameters(self) -> tuple[Tensor, Tensor]:
        return self._buffers.hyperparameters(self._args)

    def term_norms(self) -> None:
        b = self._buffers
        self._for_chunks(self._kernels.term_norms, self._grads, b.partial, *self._size)

    def fold_norms(self) -> None:
        b, table = self._buffers, self._args.table
        self._kernels.fold_norms[(len(table.params),)](
            b.chunk_start, self._grads, b.partial, table.norms, self._grad_scale, *self._size, self._width
        )

    def balance(self, fold: bool = False) -> None:
        b, table = self._buffers, self._args.table
        self._kernels.balance[(len(table.params),)](
            *(b.row, *self._hyperparameters, b.chunk_start, self._grads, b.partial, b.factors),
            *(table.steps, table.norms, table.norm_avg, table.scales, self._grad_scale, self._found_inf),
            *(*self._size, self._width, fold),
        )

    def fold_and_balance(self) -> None:
        self.balance(fold=True)

    def mtadam_update(self) -> None:
        per_term = self._args.table.layout.per_term
        self._update(self._kernels.mtadam_update if per_term else self._kernels.combined_adam)

    def term_gram(self) -> None:
        b, table = self._buffers, self._args.table
        self._for_chunks(self._kernels.term_gram, self._grads, b.partial, *self._size, self._width)
        self._kernels.fold_gram[(len(table.params),)](
            b.chunk_start, b.partial, table.gram, self._grad_scale, table.terms, self._width
        )

    def combined_adam(self) -> None:
        b, table = self._buffers, self._args.table
        self._kernels.begin_step[(len(table.params),)](
            *(b.row, self._hyperparameters[0], self._grads, b.factors, table.steps),
            *(self._grad_scale, self._found_inf, *self._size),
        )
        self._update(self._kernels.combined_adam)

    def _update(self, kernel: Any) -> None:
        b, scales = self._buffers, self._args.table.scales
        tables = (b.row, self._hyperparameters[0], self._grads, b.exp_avg_sq, b.max_exp_avg_sq, b.factors, scales)
        self._for_chunks(kernel, *tables, self._found_inf, *self._size)

    def _for_chunks(self, kernel: Any, *arguments: Any) -> None:
        """Launch once per dtype of parameters, with a program for each chunk."""
        for dtype, chunks in self._buffers.typed_chunks:
            kernel[(len(chunks),)](chunks, *arguments, dtype, num_warps=self._kernels.WARPS)


class TritonBackend:
    """See :class:`mtadam_fused.backends.Backend`."""

    name = "triton"
    takes_grad_scale = True

    def __init__(self) -> None:
        self._buffers: WeakKeyDictionary[Any, TritonBuffers] = WeakKeyDictionary()

    def supports(self, device: torch.device) -> bool:
        return device.type in DEVICE_TYPES

    def __deepcopy__(self, memo: dict[int, Any]) -> "TritonBackend":
        return self  # the buffers are of tables, which no copy shares

    def term_norms(self, args: StepArgs) -> None:
        self._run(args, StepLauncher.term_norms, StepLauncher.fold_norms)

    def balance(self, args: StepArgs) -> None:
        self._run(args, StepLauncher.balance)

    def mtadam_update(self, args: StepArgs) -> None:
        self._run(args, StepLauncher.mtadam_update)

    def mtadam_step(self, args: StepArgs) -> None:
        self._run(args, StepLauncher.term_norms, StepLauncher.fold_and_balance, StepLauncher.mtadam_update)

    def term_gram(self, args: StepArgs) -> None:
        self._run(args, StepLauncher.term_gram)

    def combined_adam(self, args: StepArgs) -> None:
        self._run(args, StepLauncher.combined_adam)

    def _run(self, args: StepArgs, *stages: Callable[[StepLauncher], None]) -> None:
        kernels, _ = load()
        with made_current(args.table.device):
            buffers = self._buffers.get(args.table)
            if buffers is None:
                buffers = self._buffers[args.table] = TritonBuffers(args)
            buffers.use_on_current_stream()
            launcher = StepLauncher(args, buffers, kernels)
            for stage in stages:
                stage(launcher)
