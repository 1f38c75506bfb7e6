"""The native CUDA kernels: three launches a step, no synchronisation with the host.

What a step needs on the device is copied there when it changes: the addresses of parameters and state with the table,
the hyper-parameters with their values. Gradients' addresses travel in the kernels' argument.
"""

from array import array
from collections.abc import Callable
from itertools import accumulate, chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..table import Table, Work
from . import native
from .native import GROUP_FIELDS, group_table, is_on_device, packed

TERM_NORMS, BALANCE, MTADAM_UPDATE = 1, 2, 4  # Stage of csrc/launch.h


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
        # The row table is [rows, 5] integers of which none changes; `second` and `maximum` are [terms, rows] addresses.
        self.row = on_device(table.row_table, torch.int64, table.device)
        self.second = on_device(table.second_table, torch.int64, table.device)
        self.maximum = on_device(table.maximum_table, torch.int64, table.device)
        self.chunk_start = on_device(starts, torch.int64, table.device)
        self.partial = torch.empty(starts[-1] * table.terms, dtype=table.dtype, device=table.device)
        self.factors = torch.empty(4 * len(table.params), dtype=table.dtype, device=table.device)
        self.hyperparameters = torch.empty(0, dtype=torch.float64, device=table.device)
        self._copied = b""

    def update(self, work: Work) -> None:
        """Brings the hyper-parameters on the device up to date: groups first, then weights."""
        device = work.table.device
        values = group_table(work.groups, device) + array("d", chain.from_iterable(work.weights))
        if values.tobytes() != self._copied:
            if self.hyperparameters.numel() != len(values):
                self.hyperparameters = torch.empty(len(values), dtype=torch.float64, device=device)
            # From pageable memory, which the driver copies away before it returns: nothing waits or is overwritten.
            self.hyperparameters.copy_(torch.frombuffer(values, dtype=torch.float64), non_blocking=True)
            self._copied = values.tobytes()
        for number, group in enumerate(work.groups):
            if isinstance(group.lr, Tensor) and is_on_device(group.lr, device):
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

    def _run(self, work: Work, stages: int) -> None:
        table = work.table
        tables = self._tables.get(table)
        if tables is None:
            tables = self._tables[table] = DeviceTables(table, native.module.CUDA_CHUNK)
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
            tables.partial.data_ptr(),
            tables.factors.data_ptr(),
            work.combined is not None,
        )
        native.module.cuda_run(*packed(work), device, stages)
