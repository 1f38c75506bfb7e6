"""What the backends of GPU kernels share: copies of a step's tables on the device, made without waiting for it.

What a step needs on the device is copied there when it changes: the addresses of parameters and state with the table,
the hyper-parameters with their values.
"""

from array import array
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from ..tables.step_args import StepArgs

GROUP_FIELDS = 9  # doubles of a Group in csrc/launch.h
LEAST_ELEMENTS, MOST_ELEMENTS = 1024, 8192  # of a chunk; both powers of two
ENOUGH_CHUNKS = 2048  # to keep a large GPU busy: some for each block that it runs at the same time
CAPTURES = 16  # steps that can be captured in CUDA graphs without one outside of them between
DTYPES = {"q": torch.int64, "d": torch.float64}  # of arrays


def on_device(values: array, device: torch.device) -> Tensor:
    """A copy of ``values`` on ``device``."""
    return torch.frombuffer(values, dtype=DTYPES[values.typecode]).to(device, copy=True)


def chunk_elements(elements: int, most: int = MOST_ELEMENTS) -> int:
    """How many elements of a step of so many a block should take: large chunks cost least, but small models need small
    ones to have the whole device args on them. At most ``most``, where that is no less than LEAST_ELEMENTS."""
    chunk = MOST_ELEMENTS
    while chunk > LEAST_ELEMENTS and (chunk > most or chunk * ENOUGH_CHUNKS > elements):
        chunk //= 2
    return chunk


def chunk_table(numels: Tensor, elements: int) -> Tensor:
    """``[chunks, 4]``, Chunk in csrc/launch.h: row, begin, end and number of each part of so many elements, for rows of
    ``numels`` elements. A row without any has one empty part."""
    counts = ((numels + elements - 1) // elements).clamp(min=1)
    row = torch.arange(len(numels), device=numels.device).repeat_interleave(counts)
    number = torch.arange(len(row), device=numels.device)
    begin = (number - (counts.cumsum(0) - counts)[row]) * elements
    return torch.stack((row, begin, torch.minimum(begin + elements, numels[row]), number), dim=1)


def pinned(count: int, like: Tensor) -> list[Tensor]:
    """So many tensors like ``like`` in host memory that a GPU can read while the host goes on."""
    return list(like.new_empty((count, len(like)), pin_memory=True))


def made_current(device: torch.device) -> AbstractContextManager:
    """Makes ``device`` the current one for a scope."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of ``device``, the current device, is being captured in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Staging:
    """Host memory for copies to a device that the host does not wait for: pinned, and left alone until they are done.

    A copy that is captured in a CUDA graph reads the host's memory again at every replay, so each value captured has
    memory of its own, kept as long as this object. None can be allocated during a capture: it is set aside before.
    """

    def __init__(self, values: array, device: torch.device) -> None:
        """``values`` are like those to come."""
        self._device = device
        self._like = torch.frombuffer(values, dtype=DTYPES[values.typecode]).clone()
        self._captured: dict[bytes, Tensor] = {}
        self._spare: list[Tensor] = []
        self.set_aside()

    def set_aside(self) -> None:
        """Outside of captures: sees to it that there is memory for the next."""
        if self._device.type == "cuda" and len(self._spare) < CAPTURES:
            self._spare += pinned(CAPTURES - len(self._spare), self._like)

    def __call__(self, values: array) -> Tensor:
        """``values`` where a copy to the device can start from, on its current stream, with ``non_blocking=True``.

        Raises:
            RuntimeError: more than CAPTURES different values were captured in a row.
        """
        host = torch.frombuffer(values, dtype=self._like.dtype)
        if self._device.type == "cpu":
            return host
        if not is_capturing(self._device):
            self.set_aside()
            return host.pin_memory()  # of the caching allocator, which waits for the copy before it reuses the memory
        value = values.tobytes()
        if value not in self._captured:
            if not self._spare:
                raise RuntimeError(
                    f"a CUDA graph has captured {CAPTURES} steps of different values, and no step was made outside of "
                    "a capture since; make one and capture again, with fewer different steps in one graph"
                )
            self._captured[value] = self._spare.pop().copy_(host)
        return self._captured[value]


class DeviceTables:
    """A table's addresses on its device, the kernels' scratch, and the hyper-parameters that were last copied there."""

    def __init__(self, args: StepArgs, most_elements: int = MOST_ELEMENTS) -> None:
        table = args.table
        if is_capturing(table.device):
            raise RuntimeError("make a first step outside of the CUDA graph: it allocates what the kernels need")
        numels = torch.tensor([p.numel() for p in table.local_params], device="cpu")
        self.chunk_elements = chunk_elements(int(numels.sum()), most_elements)
        self.chunks = chunk_table(numels, self.chunk_elements)  # on the host
        starts = torch.searchsorted(self.chunks[:, 0].contiguous(), torch.arange(len(numels) + 1, device="cpu"))
        # The row table is [rows, 5] integers of which none changes; `second` and `maximum` are [moments, rows].
        self.row = on_device(table.row_table, table.device)
        self.second = on_device(table.exp_avg_sq_table, table.device)
        self.maximum = on_device(table.max_exp_avg_sq_table, table.device)
        self.chunk_start = starts.to(table.device)
        self.factors = torch.empty(4 * len(table.params), dtype=table.dtype, device=table.device)
        # A sum of squares for each term and chunk, or a product of each pair of terms.
        self._sums = len(self.chunks) * (table.terms if table.per_term else table.terms * (table.terms + 1) // 2)
        values = args.group_table + args.weight_table
        self._hyperparameters = on_device(values, table.device)
        self._copied = values.tobytes()
        self._staging = Staging(values, table.device)

    @cached_property
    def partial(self) -> Tensor:
        """Scratch for sums over chunks."""
        return torch.empty(self._sums, dtype=self.factors.dtype, device=self.factors.device)

    def hyperparameters(self, args: StepArgs) -> tuple[Tensor, Tensor]:
        """What ``args`` has of them, on the device: groups [groups * GROUP_FIELDS] and weights [groups * terms]."""
        device = args.table.device
        values = args.group_table + args.weight_table
        if is_capturing(device):  # a graph has its own, whatever the steps between its replays leave here
            current = self._staging(values).to(device, non_blocking=True)
        else:
            self._staging.set_aside()
            current = self._hyperparameters
            if values.tobytes() != self._copied:
                current.copy_(self._staging(values), non_blocking=True)
                self._copied = values.tobytes()
        groups, weights = current.tensor_split([GROUP_FIELDS * len(args.groups)])
        for number, group in enumerate(args.groups):
            if isinstance(group.lr, Tensor) and args.has_lr_on_device(group):
                groups[number * GROUP_FIELDS].copy_(group.lr.reshape(()))  # the first field; no host involved
        return groups, weights
