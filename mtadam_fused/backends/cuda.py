"""The native CUDA kernels: three launches a step, or one; for CombinedAdam with dot products four. The host waits for
nothing.

Gradients' addresses travel in the kernels' argument; what else a step needs on the device is copied there before.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..tables.param_table import ParamTable
from ..tables.step_args import StepArgs
from . import native
from .device import MOST_ELEMENTS, DeviceTables, made_current
from .native import packed

# Stage of csrc/launch.h.
TERM_NORMS, BALANCE, MTADAM_UPDATE, TERM_GRAM, COMBINED_ADAM, MTADAM_STEP, FOLD_NORMS = 1, 2, 4, 8, 16, 32, 64


def status() -> tuple[bool, str]:
    """Whether the kernels can be used here, and their particulars or why not."""
    module = native.module
    if module is None:
        return False, native.why_missing()
    if not hasattr(module, "cuda_run"):
        return False, "the native module was built without CUDA: install the CUDA toolkit (nvcc), then reinstall"
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    return True, f"kernels compiled for {module.CUDA_ARCHITECTURES}"


# Of a step in one launch: chunks whose norms come between those of a row and its updates. A large GPU works on about as
# many at a time, so the row's are complete by then; and its L2 still has their gradients, of at most so many elements.
AHEAD, AHEAD_ELEMENTS = 256, 2**23


def launch_order(chunk_rows: Tensor, rows_at_once: int) -> Tensor:
    """Device.order of csrc/launch.h, for chunks of these rows: a row's updates follow its norms and AHEAD more."""
    numbers = torch.arange(len(chunk_rows), device="cpu")
    end_of_row = torch.searchsorted(chunk_rows, chunk_rows, right=True)
    first_of_launch = chunk_rows // rows_at_once * rows_at_once
    end_of_launch = torch.searchsorted(chunk_rows, first_of_launch + rows_at_once)
    norms_before = torch.minimum(end_of_row + AHEAD, end_of_launch)
    places = torch.cat([numbers + 1, norms_before]).argsort(stable=True)
    return torch.cat([numbers, ~numbers])[places].to(torch.int32)


class CudaTables(DeviceTables):
    """What the CUDA kernels need on the device besides: the chunks, and the queue of a step in one launch."""

    def __init__(self, args: StepArgs, one_launch: bool) -> None:
        super().__init__(args, AHEAD_ELEMENTS // AHEAD // args.table.terms if one_launch else MOST_ELEMENTS)
        self.chunk = self.chunks.to(args.table.device)
        self.queue = torch.zeros(1 + len(args.table.params), dtype=torch.int32, device=args.table.device)
        self._orders: dict[int, Tensor] = {}

    def order(self, args: StepArgs) -> Tensor:
        """Of the queue of a step in one launch."""
        table = args.table
        rows = native.module.cuda_rows_at_once(table.terms, args.combined is not None)
        if rows not in self._orders:
            self._orders[rows] = launch_order(self.chunks[:, 0].contiguous(), rows).to(table.device)
        return self._orders[rows]


class CudaBackend:
    """See :class:`mtadam_fused.backends.Backend`.

    Args:
        stream: gives the address of a device's current stream; default torch's.
        one_launch: make MTAdam's step in one launch instead of three.
    """

    def __init__(self, stream: Callable[[torch.device], int] | None = None, *, one_launch: bool = False) -> None:
        self.name = "cuda-one-launch" if one_launch else "cuda"
        self._step = MTADAM_STEP if one_launch else TERM_NORMS | BALANCE | MTADAM_UPDATE
        self._stream = stream or (lambda device: torch.cuda.current_stream(device).cuda_stream)
        self._tables: WeakKeyDictionary[ParamTable, CudaTables] = WeakKeyDictionary()

    def supports(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def term_norms(self, args: StepArgs) -> None:
        self._run(args, TERM_NORMS | FOLD_NORMS)

    def balance(self, args: StepArgs) -> None:
        self._run(args, BALANCE)

    def mtadam_update(self, args: StepArgs) -> None:
        self._run(args, MTADAM_UPDATE)

    def mtadam_step(self, args: StepArgs) -> None:
        self._run(args, self._step)

    def term_gram(self, args: StepArgs) -> None:
        self._run(args, TERM_GRAM)

    def combined_adam(self, args: StepArgs) -> None:
        self._run(args, COMBINED_ADAM)

    def _run(self, args: StepArgs, stages: int) -> None:
        with made_current(args.table.device):
            tables = self._tables.get(args.table)
            if tables is None:
                tables = self._tables[args.table] = CudaTables(args, self._step == MTADAM_STEP)
            self._launch(args, tables, stages)

    def _launch(self, args: StepArgs, tables: CudaTables, stages: int) -> None:
        table = args.table
        # Held until the kernels are launched: of a step that is captured, nothing else holds them.
        hyperparameters = () if stages == TERM_GRAM else tables.hyperparameters(args)
        groups, weights = [t.data_ptr() for t in hyperparameters] or (0, 0)
        device: Any = native.module.Device(
            table.device.index or 0,
            self._stream(table.device),
            tables.row.data_ptr(),
            groups,
            weights,
            tables.second.data_ptr(),
            tables.maximum.data_ptr(),
            tables.chunk_start.data_ptr(),
            tables.chunk.data_ptr(),
            len(tables.chunk),
            tables.chunk_elements,
            0 if stages in (BALANCE, COMBINED_ADAM) else tables.partial.data_ptr(),
            tables.factors.data_ptr(),
            tables.order(args).data_ptr() if stages == MTADAM_STEP else 0,
            tables.queue.data_ptr(),
            args.combined is not None,
        )
        native.module.cuda_run(*packed(args), device, stages)
