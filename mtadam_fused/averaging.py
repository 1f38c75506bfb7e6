"""What processes that train together do together; averages are made while the next term's backward pass runs."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import accumulate, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .hyperparameters import Term
from .shards import described as how_spread
from .shards import groups_of_meshes, ranks_of_mesh

BUCKET_BYTES = 25 * 2**20  # of gradients that travel together, as in DistributedDataParallel
ALIGNMENT = 16  # bytes, of each gradient in a bucket: kernels read so many at once
NAME_BYTES = 224  # of a term's name, to be shown to other processes


class Averaging:
    """Averages what processes have, and sees that they agree; all of them must ask for the same, in the same order.

    They are those of ``process_group``, whose gradients are averaged, and those that have parts of parameters.

    Raises:
        TypeError: not a group that this process is a member of.
    """

    def __init__(self, process_group: Any = None) -> None:
        if process_group is not None and not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
            raise TypeError(
                f"process_group is {process_group!r}; it must be a group that this process is a member of, such as "
                "torch.distributed.group.WORLD after init_process_group()"
            )
        self._group = process_group
        self._groups = [] if process_group is None else [process_group]
        self._members = set() if process_group is None else set(dist.get_process_group_ranks(process_group))
        self._averaged_already: list[bool] = []  # whether each parameter's gradients are, or none
        self.has_parts = False  # whether parameters are spread over processes
        self._under_way: list[Any] = []
        self._checked: set[Term] = set()

    def __bool__(self) -> bool:
        """Whether there may be other processes."""
        return bool(self._groups)

    def check_param(self, position: int, param: Any) -> None:
        """Raises TypeError if it is not clear whose gradients of ``param`` are to be averaged."""
        mesh = ranks_of_mesh(param)
        if mesh and dist.get_rank() not in mesh:
            raise TypeError(f"params[{position}] is {how_spread(param)}, which this process is not in; leave it out")
        shared = mesh & self._members
        if len(shared) > 1 and shared != self._members:
            raise TypeError(
                f"process_group has processes {sorted(self._members)}, and params[{position}] is {how_spread(param)}; "
                "give the group of those whose gradients nothing else averages, such as that of data parallelism "
                "beside tensor parallelism"
            )

    def join(self, params: Sequence[Tensor]) -> None:
        """Takes in the processes that have parts of ``params``, all of the optimizer's."""
        meshes = groups_of_meshes(params)
        self._groups = meshes if self._group is None else [self._group, *meshes]
        self.has_parts = bool(meshes)
        # What spreads a parameter over the group averages its gradients too.
        self._averaged_already = [len(ranks_of_mesh(p) & self._members) > 1 for p in params] if meshes else []

    def check(self, term: Term, grads: Sequence[Tensor | None], device: torch.device) -> None:
        """At the first gradients of a term: sees that the other processes have the same, so that no two terms mix.

        Args:
            device: where the group can send from.

        Raises:
            RuntimeError: another process has other first gradients; in all processes.
        """
        if term in self._checked or not self:
            return
        name, reached = repr(term), [i for i, grad in enumerate(grads) if grad is not None]
        shown = name.encode()[:NAME_BYTES].ljust(NAME_BYTES)
        own = torch.tensor(list(sha256(repr((name, reached)).encode()).digest() + shown), dtype=torch.uint8)
        others = []
        for group in self._groups:
            found = [torch.empty_like(own, device=device) for _ in range(dist.get_world_size(group))]
            dist.all_gather(found, own.to(device), group)
            others += [
                f"process {number} of the group has first gradients of term "
                + bytes(its[-NAME_BYTES:].tolist()).decode(errors="replace").rstrip()
                for number, its in enumerate(torch.stack(found).cpu())
                if not torch.equal(its, own)
            ]
        if not self.all_have(torch.tensor([not others], device=device)):  # also where only others see a difference
            raise RuntimeError(
                f"{(others or ['processes of other groups have first gradients of other terms'])[0]}, this one of term "
                f"{name}, or for other parameters; give the same terms in every process, in the same order, and a loss "
                "of zeros (0 * out.sum()) where a process has nothing of a term"
            )
        self._checked.add(term)

    def start(self, grads: list[Tensor | None]) -> None:
        """Puts others of the same layout in place of the dense tensors of ``grads``: averages, after :meth:`wait`."""
        if self._group is None:
            return
        for bucket in buckets([None if done else g for g, done in zip_longest(grads, self._averaged_already)]):
            flat, views = flattened([grad for i in bucket if (grad := grads[i]) is not None])
            for i, view in zip(bucket, views, strict=True):
                grads[i] = view
            self._under_way.append(average(flat, self._group))

    def wait(self) -> None:
        """Makes the current streams, and on the CPU the caller, wait for all that was started."""
        under_way, self._under_way = self._under_way, []
        for work in under_way:
            work.wait()

    def forget(self) -> None:
        """Leaves what was started to itself."""
        self._under_way = []

    def averaged(self, values: Tensor) -> Tensor:
        """The average of ``values``, in memory of its own."""
        values = values.clone()
        for group in self._groups:
            average(values, group).wait()
        return values

    def agreed(self, values: Tensor) -> Tensor:
        """What the first process has as ``values``."""
        values = values.clone()
        for group in self._groups:
            dist.broadcast(values, dist.get_global_rank(group, 0), group)
        return values

    def all_have(self, flags: Tensor) -> Tensor:
        """Which of ``flags`` are True in all processes."""
        return self.averaged(flags.logical_not().float()) == 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Averaging":
        return Averaging(self._group)

    def __reduce__(self) -> Any:
        if self:
            raise TypeError("an optimizer that trains with other processes cannot be pickled; save its state_dict()")
        return Averaging, ()


def average(values: Tensor, group: Any) -> Any:
    """Begins to make ``values`` their average over ``group``; what it returns can wait for it."""
    values /= dist.get_world_size(group)  # before the sum, which 16-bit types may not hold
    return dist.all_reduce(values, group=group, async_op=True)


def buckets(grads: Sequence[Tensor | None]) -> Iterator[list[int]]:
    """The positions of the gradients that there are, in parts of one type and device and of about BUCKET_BYTES."""
    open_buckets: dict[Any, list[int]] = {}
    sizes: dict[Any, int] = {}
    for i, grad in enumerate(grads):
        if grad is None:
            continue
        kind = grad.dtype, grad.device
        open_buckets.setdefault(kind, []).append(i)
        sizes[kind] = sizes.get(kind, 0) + grad.nbytes
        if sizes[kind] >= BUCKET_BYTES:
            yield open_buckets.pop(kind)
            sizes[kind] = 0
    yield from open_buckets.values()


@torch.no_grad()
def flattened(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A tensor [elements] that has copies of dense ``tensors`` one after the other, and views of these."""
    step = ALIGNMENT // tensors[0].element_size()
    starts = list(accumulate((-(-tensor.numel() // step) * step for tensor in tensors), initial=0))
    flat = tensors[0].new_zeros(starts.pop())
    views = [flat.as_strided(t.shape, t.stride(), start) for t, start in zip(tensors, starts, strict=True)]
    torch._foreach_copy_(views, list(tensors))
    return flat, views
