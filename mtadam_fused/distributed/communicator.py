"""Collectives for data-parallel and sharded training. Averages overlap with the next term's backward pass."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import accumulate, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..hyperparameters import Term
from .dtensor import describe_placement, mesh_process_groups, mesh_ranks

BUCKET_BYTES = 25 * 2**20  # of gradients reduced together, as in DistributedDataParallel
ALIGNMENT = 16  # bytes, of each gradient in a bucket, because kernels load that many at once
NAME_BYTES = 224  # of a term's name, sent to the other processes for their error message


class Communicator:
    """Run the collectives of one optimizer. All processes must call the same methods in the same order.

    The processes are those of ``process_group``, which average gradients, and those on the meshes of sharded
    parameters.

    Raises:
        TypeError: ``process_group`` is not a group that this process is a member of.
    """

    def __init__(self, process_group: Any = None) -> None:
        if process_group is not None and not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
            raise TypeError(
                f"process_group is {process_group!r}; it must be a group that this process is a member of, such as "
                "torch.distributed.group.WORLD after init_process_group()"
            )
        self._process_group = process_group
        self._process_groups = [] if process_group is None else [process_group]
        self._ranks = set() if process_group is None else set(dist.get_process_group_ranks(process_group))
        self._reduced_by_mesh: list[bool] = []  # per parameter; empty if no parameter is sharded
        self.has_shards = False  # whether any parameter is a DTensor
        self._in_flight: list[Any] = []
        self._checked_terms: set[Term] = set()

    def __bool__(self) -> bool:
        """Return whether there may be other processes."""
        return bool(self._process_groups)

    @property
    def size(self) -> int:
        """Number of the processes whose gradients are averaged."""
        return 1 if self._process_group is None else dist.get_world_size(self._process_group)

    def ignored_processes(self) -> int:
        """Return how many processes there are, if this knows of none but its own; 0 if it does, or if it is alone."""
        if self or not (dist.is_available() and dist.is_initialized()):
            return 0
        processes = dist.get_world_size()
        return processes if processes > 1 else 0

    def check_param(self, position: int, param: Any) -> None:
        """Raise TypeError if it is unclear which processes average the gradients of ``param``."""
        mesh = mesh_ranks(param)
        if mesh and dist.get_rank() not in mesh:
            raise TypeError(
                f"params[{position}] is {describe_placement(param)}, and this process, rank {dist.get_rank()}, is not "
                "on that mesh; leave the parameter out"
            )
        shared = mesh & self._ranks
        if len(shared) > 1 and shared != self._ranks:
            raise TypeError(
                f"process_group has ranks {sorted(self._ranks)}, but params[{position}] is "
                f"{describe_placement(param)}; pass the group whose gradients nothing else averages, such as the "
                "data-parallel group next to tensor parallelism"
            )

    def set_params(self, params: Sequence[Tensor]) -> None:
        """Include the processes on the meshes of ``params``, which are all parameters of the optimizer."""
        mesh_groups = mesh_process_groups(params)
        self._process_groups = mesh_groups if self._process_group is None else [self._process_group, *mesh_groups]
        self.has_shards = bool(mesh_groups)
        # What shards a parameter over these processes also averages its gradients over them.
        self._reduced_by_mesh = [len(mesh_ranks(p) & self._ranks) > 1 for p in params] if mesh_groups else []

    def check_same_term(self, term: Term, grads: Sequence[Tensor | None], device: torch.device) -> None:
        """Check at a term's first gradients that all processes have the same term, so that no two terms mix.

        Args:
            term: its name.
            grads: one entry per parameter, None where the term does not reach the parameter.
            device: a device whose tensors the group can send.

        Raises:
            RuntimeError: the processes disagree; in every process.
        """
        if term in self._checked_terms or not self:
            return
        name, positions = repr(term), [i for i, grad in enumerate(grads) if grad is not None]
        shown = name.encode()[:NAME_BYTES].ljust(NAME_BYTES)
        own = torch.tensor(
            list(sha256(repr((name, positions)).encode()).digest() + shown), dtype=torch.uint8, device="cpu"
        )
        others = []
        for group in self._process_groups:
            gathered = [torch.empty_like(own, device=device) for _ in range(dist.get_world_size(group))]
            dist.all_gather(gathered, own.to(device), group)
            others += [
                f"rank {rank} of the group has {bytes(found[-NAME_BYTES:].tolist()).decode(errors='replace').rstrip()}"
                for rank, found in enumerate(torch.stack(gathered).cpu())
                if not torch.equal(found, own)
            ]
        if not self.all_ranks_true(torch.tensor([not others], device=device)):  # a process may see no difference itself
            raise RuntimeError(
                "ranks disagree on the next term, or on the parameters that it reaches: "
                f"{(others or ['a rank of another group has another term'])[0]}, this rank {name}; pass the same terms "
                "in the same order in every process, and a loss of zeros (0 * out.sum()) where one has nothing to add"
            )
        self._checked_terms.add(term)

    def all_reduce_mean_async(self, grads: list[Tensor | None]) -> None:
        """Start averaging the dense tensors of ``grads``.

        Replaces them by tensors of the same layout that hold the averages after :meth:`wait`.
        """
        if self._process_group is None:
            return
        for bucket in make_buckets([None if done else g for g, done in zip_longest(grads, self._reduced_by_mesh)]):
            flat, views = flatten([grad for i in bucket if (grad := grads[i]) is not None])
            for i, view in zip(bucket, views, strict=True):
                grads[i] = view
            self._in_flight.append(start_mean(flat, self._process_group))

    def wait(self) -> None:
        """Make the current streams, and on the CPU the caller, wait for all averages."""
        in_flight, self._in_flight = self._in_flight, []
        for collective in in_flight:
            collective.wait()

    def abandon(self) -> None:
        """Drop the averages that are still in flight."""
        self._in_flight = []

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Return the average of ``values`` over all processes, in new memory."""
        values = values.clone()
        for group in self._process_groups:
            start_mean(values, group).wait()
        return values

    def broadcast_first(self, values: Tensor) -> Tensor:
        """Return the ``values`` of the first process, in new memory."""
        values = values.clone()
        for group in self._process_groups:
            dist.broadcast(values, dist.get_global_rank(group, 0), group)
        return values

    def all_ranks_true(self, flags: Tensor) -> Tensor:
        """Return which of ``flags`` are True in all processes."""
        return self.all_reduce_mean(flags.logical_not().float()) == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Communicator":
        return Communicator(self._process_group)

    def __reduce__(self) -> Any:
        if self:
            raise TypeError("an optimizer that trains with other processes cannot be pickled; save its state_dict()")
        return Communicator, ()


def start_mean(values: Tensor, process_group: Any) -> Any:
    """Start replacing ``values`` by their average over the group, and return the collective to wait for."""
    values /= dist.get_world_size(process_group)  # before the sum, which may overflow 16-bit types
    return dist.all_reduce(values, group=process_group, async_op=True)


def make_buckets(grads: Sequence[Tensor | None]) -> Iterator[list[int]]:
    """Yield the positions of gradients of one dtype and device, about BUCKET_BYTES at a time."""
    open_buckets: dict[Any, list[int]] = {}
    sizes: dict[Any, int] = {}
    for i, grad in enumerate(grads):
        if grad is None:
            continue
        key = grad.dtype, grad.device
        open_buckets.setdefault(key, []).append(i)
        sizes[key] = sizes.get(key, 0) + grad.nbytes
        if sizes[key] >= BUCKET_BYTES:
            yield open_buckets.pop(key)
            sizes[key] = 0
    yield from open_buckets.values()


@torch.no_grad()
def flatten(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copy dense ``tensors`` into one flat tensor, and return it with views that have their shapes and strides."""
    step = ALIGNMENT // tensors[0].element_size()
    starts = list(accumulate((-(-tensor.numel() // step) * step for tensor in tensors), initial=0))
    flat = tensors[0].new_zeros(starts.pop())
    views = [flat.as_strided(t.shape, t.stride(), start) for t, start in zip(tensors, starts, strict=True)]
    torch._foreach_copy_(views, list(tensors))
    return flat, views
