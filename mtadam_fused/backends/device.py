"""Copies of a step's tables on a GPU, made without waiting for it.

The addresses of parameters and state are copied with the table, the hyper-parameters when their values change.
"""

from array import array
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..tables.step_args import GROUP_FIELDS, StepArgs

LEAST_ELEMENTS, MOST_ELEMENTS = 1024, 8192  # of a chunk; both powers of two
ENOUGH_CHUNKS = 2048  # to keep a large GPU busy: several for each block that it runs at the same time
FACTORS = 5  # members of ``StepFactors`` in csrc/update_math.h
CAPTURES = 16  # captured steps allowed between two eager steps
DTYPES = {"q": torch.int64, "d": torch.float64}  # of arrays


def on_device(values: array, device: torch.device) -> Tensor:
    """Copy ``values`` to ``device``."""
    return torch.frombuffer(values, dtype=DTYPES[values.typecode]).to(device, copy=True)


def chunk_elements(elements: int, most: int = MOST_ELEMENTS) -> int:
    """Return the size of a chunk, a power of two from LEAST_ELEMENTS to MOST_ELEMENTS.

    Large chunks cost least, but small models need small ones to keep the whole device busy.

    Args:
        elements: of all parameters.
        most: upper bound, where it is not below LEAST_ELEMENTS.
    """
    chunk = MOST_ELEMENTS
    while chunk > LEAST_ELEMENTS and (chunk > most or chunk * ENOUGH_CHUNKS > elements):
        chunk //= 2
    return chunk


def chunk_table(numels: Tensor, elements: int) -> Tensor:
    """Cut rows of ``numels`` elements into chunks of so many elements; an empty row has one empty chunk.

    Returns:
        ``[chunks, 4]``, ``Chunk`` of csrc/launch.h: row, begin, end and number.
    """
    counts = ((numels + elements - 1) // elements).clamp(min=1)
    row = torch.arange(len(numels), device=numels.device).repeat_interleave(counts)
    number = torch.arange(len(row), device=numels.device)
    begin = (number - (counts.cumsum(0) - counts)[row]) * elements
    return torch.stack((row, begin, torch.minimum(begin + elements, numels[row]), number), dim=1)


def pinned(count: int, like: Tensor) -> list[Tensor]:
    """Allocate ``count`` tensors like ``like`` in host memory that a GPU can read while the host goes on."""
    return list(like.new_empty((count, len(like)), pin_memory=True))


def made_current(device: torch.device) -> AbstractContextManager:
    """Make ``device`` the current one for a scope."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


def is_capturing(device: torch.device) -> bool:
    """Return whether the current stream of ``device``, the current device, is being captured in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Staging:
    """Pinned host memory for copies to a device that the host does not wait for.

    A copy that is captured in a CUDA graph reads the host's memory again at every replay. So each captured value has
    memory of its own, kept as long as this object. A capture cannot allocate memory, so it is set aside before.
    """

    def __init__(self, values: array, device: torch.device) -> None:
        """Take ``values`` like those to come."""
        self._device = device
        self._like = torch.frombuffer(values, dtype=DTYPES[values.typecode]).clone()
        self._captured: dict[bytes, Tensor] = {}
        self._spare: list[Tensor] = []
        self.set_aside()

    def set_aside(self) -> None:
        """Set memory aside for the next captures; called outside of captures."""
        if self._device.type == "cuda" and len(self._spare) < CAPTURES:
            self._spare += pinned(CAPTURES - len(self._spare), self._like)

    def __call__(self, values: array) -> Tensor:
        """Put ``values`` where a ``non_blocking=True`` copy to the device can start, on its current stream.

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


class DeviceBuffers:
    """The device memory of one table: its addresses, the kernels' scratch, and the last hyper-parameters."""

    def __init__(self, args: StepArgs, most_elements: int = MOST_ELEMENTS) -> None:
        table = args.table
        if is_capturing(table.device):
            raise RuntimeError("make a first step outside of the CUDA graph: it allocates what the kernels need")
        numels = torch.tensor([p.numel() for p in table.local_params], device="cpu")
        self.chunk_elements = chunk_elements(int(numels.sum()), most_elements)
        self.chunks = chunk_table(numels, self.chunk_elements)  # on the host
        starts = torch.searchsorted(self.chunks[:, 0].contiguous(), torch.arange(len(numels) + 1, device="cpu"))
        # [rows, 5] and [moments, rows] integers that never change.
        self.row = on_device(table.row_table, table.device)
        self.exp_avg_sq = on_device(table.exp_avg_sq_table, table.device)
        self.max_exp_avg_sq = on_device(table.max_exp_avg_sq_table, table.device)
        self.chunk_start = starts.to(table.device)
        self.factors = torch.empty(FACTORS * len(table.params), dtype=table.dtype, device=table.device)
        # Scratch for a sum of squares for each term and chunk, or a product of each pair of terms.
        sums = table.terms if table.layout.has_norms else table.terms * (table.terms + 1) // 2
        self.partial = torch.empty(sums * len(self.chunks), dtype=torch.float64, device=table.device)
        values = args.group_table + args.weight_table
        self._hyperparameters = on_device(values, table.device)
        self._copied = values.tobytes()
        self._staging = Staging(values, table.device)
        self._streams: set[torch.Stream] = set()

    def tensors(self) -> list[Tensor]:
        """Return all of this memory."""
        tables = [self.row, self.exp_avg_sq, self.max_exp_avg_sq, self.chunk_start]
        return [*tables, self.factors, self.partial, self._hyperparameters]

    def use_on_current_stream(self) -> None:
        """Keep this memory, once it is dropped, until the current stream has done what it was given before."""
        if self.factors.device.type == "cpu":
            return
        stream = torch.get_device_module(self.factors.device).current_stream(self.factors.device)
        if stream not in self._streams:
            self._streams.add(stream)
            for tensor in self.tensors():
                tensor.record_stream(stream)

    def hyperparameters(self, args: StepArgs) -> tuple[Tensor, Tensor]:
        """Return on the device groups ``[groups * len(GROUP_FIELDS)]`` and term weights ``[groups * terms]``."""
        device = args.table.device
        values = args.group_table + args.weight_table
        if is_capturing(device):  # a graph has its own, because other steps change this memory between its replays
            current = self._staging(values).to(device, non_blocking=True)
        else:
            self._staging.set_aside()
            current = self._hyperparameters
            if values.tobytes() != self._copied:
                current.copy_(self._staging(values), non_blocking=True)
                self._copied = values.tobytes()
        groups, weights = current.tensor_split([len(GROUP_FIELDS) * len(args.groups)])
        for number, group in enumerate(args.groups):
            if isinstance(group.lr, Tensor) and args.has_lr_on_device(group):
                groups[number * len(GROUP_FIELDS) + GROUP_FIELDS.index("lr")].copy_(
                    group.lr.reshape(())
                )  # no host involved
        return groups, weights
