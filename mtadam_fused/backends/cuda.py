"""The native CUDA kernels. The host waits for nothing.

A step of MTAdam is three launches, or one; a step of CombinedAdam with dot products is four. The gradients' addresses
travel in the kernels' argument. What else a step needs on the device is copied there before.
"""

from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..tables.param_table import ParamTable
from ..tables.step_args import StepArgs
from . import native
from .device import MOST_ELEMENTS, DeviceBuffers, made_current


def status(device: torch.device | None = None) -> tuple[bool, str]:
    """Return whether the kernels can be used on ``device``, or on any one here, and their details or why not."""
    module = native.module
    if module is None:
        return False, native.why_missing()
    if not hasattr(module, "cuda_run"):
        return False, "the native module was built without CUDA: install the CUDA toolkit (nvcc), then reinstall"
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device"
    made_for = f"kernels compiled for {module.CUDA_ARCHITECTURES}"
    if device is not None and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    indices = range(torch.cuda.device_count()) if device is None else [device.index]
    problems = [f"they do not run on cuda:{i}: {problem}" for i in indices if (problem := find_problem(module, i))]
    return len(problems) < len(indices), "; ".join([made_for, *problems])


@cache
def find_problem(module: Any, index: int) -> str:
    """Return why a device cannot run the kernels, empty if it can.

    It cannot if its driver is older than the CUDA toolkit, or the kernels were compiled for other GPUs.
    """
    with torch.cuda.device(index):
        return module.cuda_find_problem(index)


# In the one-launch step, so many chunks' norms come between the norms of a row and its updates. A large GPU works on
# about as many at a time, so the row's norms are complete by then. Their gradients, of at most so many elements, are
# still in its L2 cache: bench/results/tuning/cache_model.md shows for which sizes.
AHEAD, AHEAD_ELEMENTS = 256, 2**21


def most_elements(terms: int, window: int) -> int:
    """Return the most elements of a chunk with which the gradients of AHEAD chunks fit in ``window`` elements."""
    return window // AHEAD // terms


def launch_order(chunk_rows: Tensor, rows_at_once: int, *, descending: bool = True) -> Tensor:
    """Return the order in which blocks take work: a row's updates follow its norms and those of AHEAD more chunks.

    Args:
        chunk_rows: the row of each chunk.
        rows_at_once: rows of a launch.
        descending: update the chunks of a row from the last to the first. The gradients of a row that is larger than
            the L2 cache are then found in it as far as they fit: those that were read last.

    Returns:
        ``[2 * chunks]``, the number of a chunk for its norms and the bitwise complement for its update.
    """
    numbers = torch.arange(len(chunk_rows), device="cpu")
    end_of_row = torch.searchsorted(chunk_rows, chunk_rows, right=True)
    first_of_launch = chunk_rows // rows_at_once * rows_at_once
    end_of_launch = torch.searchsorted(chunk_rows, first_of_launch + rows_at_once)
    norms_before = torch.minimum(end_of_row + AHEAD, end_of_launch)
    updates = torch.searchsorted(chunk_rows, chunk_rows) + end_of_row - 1 - numbers if descending else numbers
    places = torch.cat([numbers + 1, norms_before]).argsort(stable=True)
    return torch.cat([numbers, ~updates])[places].to(torch.int32)


# The stages that read or write sums over chunks. BALANCE does where norms come before it in the same call.
NEED_PARTIAL = frozenset(("TERM_NORMS", "TERM_GRAM", "MTADAM_STEP"))


def update_stage(args: StepArgs) -> str:
    """Return the stage that updates parameters: with a second moment for each term, or one for all."""
    return "MTADAM_UPDATE" if args.table.layout.per_term else "COMBINED_ADAM"


class CudaBuffers(DeviceBuffers):
    """The device memory of the CUDA kernels: also the chunks, and the queue of the one-launch step."""

    def __init__(self, args: StepArgs, one_launch: bool) -> None:
        most = most_elements(args.table.terms, AHEAD_ELEMENTS) if one_launch else MOST_ELEMENTS
        super().__init__(args, most)
        self.chunk = self.chunks.to(args.table.device)
        self.queue = torch.zeros(1 + len(args.table.params), dtype=torch.int32, device=args.table.device)
        # In which order blocks take work in the one-launch step, without and with combined gradients.
        self._orders: list[Tensor] = []
        if one_launch:
            chunk_rows = self.chunks[:, 0].contiguous()
            for wants_combined in (False, True):
                rows = native.module.cuda_rows_at_once(args.table.terms, wants_combined)
                self._orders.append(launch_order(chunk_rows, rows).to(args.table.device))

    def order(self, args: StepArgs) -> Tensor:
        """Return the order in which blocks take work in the one-launch step."""
        return self._orders[args.combined is not None]

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), self.chunk, self.queue, *self._orders]


class CudaBackend:
    """See :class:`mtadam_fused.backends.Backend`.

    Args:
        stream: returns the address of a device's current stream; default torch's.
        one_launch: make MTAdam's step in one launch instead of three.
    """

    takes_grad_scale = True

    def __init__(self, stream: Callable[[torch.device], int] | None = None, *, one_launch: bool = False) -> None:
        self.name = "cuda-one-launch" if one_launch else "cuda"
        self._one_launch = one_launch
        self._stream = stream or (lambda device: torch.cuda.current_stream(device).cuda_stream)
        self._buffers: WeakKeyDictionary[ParamTable, CudaBuffers] = WeakKeyDictionary()

    def supports(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def term_norms(self, args: StepArgs) -> None:
        self._run(args, "TERM_NORMS", "FOLD_NORMS")

    def balance(self, args: StepArgs) -> None:
        self._run(args, "BALANCE")

    def mtadam_update(self, args: StepArgs) -> None:
        self._run(args, update_stage(args))

    def mtadam_step(self, args: StepArgs) -> None:
        if self._one_launch:
            self._run(args, "MTADAM_STEP")
        else:
            self._run(args, "TERM_NORMS", "BALANCE", update_stage(args))

    def term_gram(self, args: StepArgs) -> None:
        self._run(args, "TERM_GRAM")

    def combined_adam(self, args: StepArgs) -> None:
        self._run(args, "BEGIN_STEP", "COMBINED_ADAM")

    def __deepcopy__(self, memo: dict[int, Any]) -> "CudaBackend":
        return self  # the buffers are of tables, which no copy shares

    def _run(self, args: StepArgs, *stages: str) -> None:
        """Launch stages of csrc/launch.h, by the names of the module's constants.

        They take ``DeviceArgs``: the members of ``StepArgs`` with the tables' copies on the device, and more.
        """
        with made_current(args.table.device):
            buffers = self._buffers.get(args.table)
            if buffers is None:
                buffers = self._buffers[args.table] = CudaBuffers(args, self._one_launch)
            buffers.use_on_current_stream()
            # Held until the kernels are launched: nothing else holds the hyper-parameters of a captured step.
            hyperparameters = () if stages == ("TERM_GRAM",) else buffers.hyperparameters(args)
            group, weight = [values.data_ptr() for values in hyperparameters] or (0, 0)
            host = args.members()
            device = host | {
                "row": buffers.row.data_ptr(),
                "group": group,
                "weight": weight,
                "grad": 0,
                "grad_type": 0,
                "exp_avg_sq": buffers.exp_avg_sq.data_ptr(),
                "max_exp_avg_sq": buffers.max_exp_avg_sq.data_ptr(),
                "combined": 0,
                "index": args.table.device.index or 0,
                "stream": self._stream(args.table.device),
                "chunk_start": buffers.chunk_start.data_ptr(),
                "chunk": buffers.chunk.data_ptr(),
                "chunks": len(buffers.chunk),
                "chunk_elements": buffers.chunk_elements,
                "partial": buffers.partial.data_ptr() if NEED_PARTIAL.intersection(stages) else 0,
                "factors": buffers.factors.data_ptr(),
                "order": buffers.order(args).data_ptr() if stages == ("MTADAM_STEP",) else 0,
                "queue": buffers.queue.data_ptr(),
                "wants_combined": int(args.combined is not None),
            }
            stage = sum(getattr(native.module, name) for name in stages)
            native.module.cuda_run(args.table.dtype == torch.float64, native.pack(host), native.pack(device), stage)
