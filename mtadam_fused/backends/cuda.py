"""The native CUDA kernels: three launches a step, or one; for CombinedAdam with dot products four. The host waits for
nothing.

Gradients' addresses travel in the kernels' argument; what else a step needs on the device is copied there before.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..table import Table, Work
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

    def __init__(self, work: Work, in_one_launch: bool) -> None:
        super().__init__(work, AHEAD_ELEMENTS // AHEAD // work.table.terms if in_one_launch else MOST_ELEMENTS)
        self.chunk = self.chunks.to(work.table.device)
        self.queue = torch.zeros(1 + len(work.table.params), dtype=torch.int32, device=work.table.device)
        self._orders: dict[int, Tensor] = {}

    def order(self, work: Work) -> Tensor:
        """Of the queue of a step in one launch."""
        table = work.table
        rows = native.module.cuda_rows_at_once(table.terms, work.combined is not None)
        if rows not in self._orders:
            self._orders[rows] = launch_order(self.chunks[:, 0].contiguous(), rows).to(table.device)
        return self._orders[rows]


class CudaBackend:
    """See :class:`mtadam_fused.backends.Backend`.

    Args:
        stream: gives the address of a device's current stream; default torch's.
        in_one_launch: make MTAdam's step in one launch instead of three.
    """

    name = "cuda"

    def __init__(self, stream: Callable[[torch.device], int] | None = None, *, in_one_launch: bool = False) -> None:
        self._step = MTADAM_STEP if in_one_launch else TERM_NORMS | BALANCE | MTADAM_UPDATE
        self._stream = stream or (lambda device: torch.cuda.current_stream(device).cuda_stream)
        self._tables: WeakKeyDictionary[Table, CudaTables] = WeakKeyDictionary()

    def serves(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def term_norms(self, work: Work) -> None:
        self._run(work, TERM_NORMS | FOLD_NORMS)

    def balance(self, work: Work) -> None:
        self._run(work, BALANCE)

    def mtadam_update(self, work: Work) -> None:
        self._run(work, MTADAM_UPDATE)

    def mtadam_step(self, work: Work) -> None:
        self._run(work, self._step)

    def term_gram(self, work: Work) -> None:
        self._run(work, TERM_GRAM)

    def combined_adam(self, work: Work) -> None:
        self._run(work, COMBINED_ADAM)

    def _run(self, work: Work, stages: int) -> None:
        with made_current(work.table.device):
            tables = self._tables.get(work.table)
            if tables is None:
                tables = self._tables[work.table] = CudaTables(work, self._step == MTADAM_STEP)
            self._launch(work, tables, stages)

    def _launch(self, work: Work, tables: CudaTables, stages: int) -> None:
        table = work.table
        # Held until the kernels are launched: of a step that is captured, nothing else holds them.
        hyperparameters = () if stages == TERM_GRAM else tables.hyperparameters(work)
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
            tables.order(work).data_ptr() if stages == MTADAM_STEP else 0,
            tables.queue.data_ptr(),
            work.combined is not None,
        )
        native.module.cuda_run(*packed(work), device, stages)
