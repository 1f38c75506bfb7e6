"""The native CUDA kernels: three launches a step, for CombinedAdam with dot products four; the host waits for nothing.

What a step needs on the device is copied there when it changes: the addresses of parameters and state with the table,
the hyper-parameters with their values. Gradients' addresses travel in the kernels' argument.
"""

from array import array
from collections.abc import Callable
from functools import cached_property
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..table import Table, Work
from . import native
from .native import packed

TERM_NORMS, BALANCE, MTADAM_UPDATE, TERM_GRAM, COMBINED_ADAM = 1, 2, 4, 8, 16  # Stage of csrc/launch.h
GROUP_FIELDS = 9  # doubles of a Group in csrc/launch.h


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


def on_device(values: array, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of ``values`` on ``device``."""
    return torch.frombuffer(values, dtype=dtype).to(device, copy=True)


class DeviceTables:
    """A table's addresses on its device, the kernels' scratch, and the hyper-parameters that were last copied there."""

    def __init__(self, table: Table, chunk: int) -> None:
        starts = array("q", accumulate((-(-p.numel() // chunk) for p in table.params), initial=0))
        # The row table is [rows, 5] integers of which none changes; `second` and `maximum` are [moments, rows].
        self.row = on_device(table.row_table, torch.int64, table.device)
        self.second = on_device(table.second_table, torch.int64, table.device)
        self.maximum = on_device(table.maximum_table, torch.int64, table.device)
        self.chunk_start = on_device(starts, torch.int64, table.device)
        self.factors = torch.empty(4 * len(table.params), dtype=table.dtype, device=table.device)
        self.hyperparameters = torch.empty(0, dtype=torch.float64, device=table.device)
        self._copied = b""
        # A sum of squares for each term and chunk, or a product of each pair of terms.
        self._sums = starts[-1] * (table.terms if table.per_term else table.terms * (table.terms + 1) // 2)

    @cached_property
    def partial(self) -> Tensor:
        """Scratch for sums over chunks."""
        return torch.empty(self._sums, dtype=self.factors.dtype, device=self.factors.device)

    def update(self, work: Work) -> None:
        """Brings the hyper-parameters on the device up to date: groups first, then weights."""
        values = work.group_table + work.weight_table
        if (contents := values.tobytes()) != self._copied:
            if self.hyperparameters.numel() != len(values):
                self.hyperparameters = self.hyperparameters.new_empty(len(values))
            # From pageable memory, which the driver copies away before it returns: nothing waits or is overwritten.
            self.hyperparameters.copy_(torch.frombuffer(values, dtype=torch.float64), non_blocking=True)
            self._copied = contents
        for number, group in enumerate(work.groups):
            if isinstance(group.lr, Tensor) and work.has_lr_on_device(group):
                self.hyperparameters[number * GROUP_FIELDS].copy_(group.lr)  # the first field; no host involved


class CudaBackend:
    """See :class:`mtadam_fused.backends.Backend`."""

    name = "cuda"

    def __init__(self, stream: Callable[[torch.device], int] | None = None) -> None:
        self._stream = stream or (lambda device: torch.cuda.current_stream(device).cuda_stream)
        self._tables: WeakKeyDictionary[Table, DeviceTables] = WeakKeyDictionary()

    def term_norms(self, work: Work) -> None:
        """Stage 1; the sums of a row's chunks become its norm in stage 2."""
        self._run(work, TERM_NORMS)

    def balance(self, work: Work) -> None:
        self._run(work, BALANCE)

    def mtadam_update(self, work: Work) -> None:
        self._run(work, MTADAM_UPDATE)

    def mtadam_step(self, work: Work) -> None:
        self._run(work, TERM_NORMS | BALANCE | MTADAM_UPDATE)

    def term_gram(self, work: Work) -> None:
        self._run(work, TERM_GRAM)

    def combined_adam(self, work: Work) -> None:
        self._run(work, COMBINED_ADAM)

    def _run(self, work: Work, stages: int) -> None:
        table = work.table
        tables = self._tables.get(table)
        if tables is None:
            tables = self._tables[table] = DeviceTables(table, native.module.CUDA_CHUNK)
        if stages != TERM_GRAM:
            tables.update(work)
        groups = tables.hyperparameters.data_ptr()
        device: Any = native.module.Device(
            table.device.index or 0,
            self._stream(table.device),
            tables.row.data_ptr(),
            groups,
            groups + 8 * GROUP_FIELDS * len(work.groups),
            tables.second.data_ptr(),
            tables.maximum.data_ptr(),
            tables.chunk_start.data_ptr(),
            0 if stages == COMBINED_ADAM else tables.partial.data_ptr(),
            tables.factors.data_ptr(),
            work.combined is not None,
        )
        native.module.cuda_run(*packed(work), device, stages)
