"""Tensors that are spread over processes: DTensors, as FSDP2 and tensor parallelism make them."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_spread(tensor: Any) -> bool:
    """Whether it is a DTensor; without importing what makes them."""
    return hasattr(tensor, "device_mesh")


def is_partial(tensor: Any) -> bool:
    """Whether it is a DTensor whose value is a sum over processes that is yet to be made."""
    return is_spread(tensor) and any(placement.is_partial() for placement in tensor.placements)


@torch.no_grad()
def parts(tensors: Iterable[Any]) -> list[Any]:
    """Of each tensor the part that is in this process, in the same memory; None for None."""
    return [arrived(tensor.to_local()) if is_spread(tensor) else tensor for tensor in tensors]


def arrived(part: Any) -> Tensor:
    """``part``, or what it becomes when a communication has ended that is under way."""
    return part if type(part) is Tensor else getattr(part, "wait", lambda: part)()


def part(tensor: Any) -> Any:
    """The part of ``tensor`` that is in this process, in the same memory; None for None."""
    return parts([tensor])[0] if is_spread(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of ``tensor``, in every process."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def version(tensor: Tensor) -> tuple[int, int]:
    """What changes when ``tensor`` is changed in place, as a whole or in this process' part."""
    return tensor._version, part(tensor)._version


def spread_like(like: Any, part: Tensor) -> Tensor:
    """The tensor of which ``part`` is in this process, where it is spread as ``like`` is."""
    if not is_spread(like):
        return part
    how = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    return type(like).from_local(part, like.device_mesh, like.placements, **how)


def over_same_processes(one: Any, other: Any) -> bool:
    """Whether both are in one piece, or spread over the same processes."""
    mesh, its = getattr(one, "device_mesh", None), getattr(other, "device_mesh", None)
    return mesh is its or mesh == its


def are_spread_alike(one: Any, other: Any) -> bool:
    """Whether both are in one piece, or over the same processes in the same parts."""
    return over_same_processes(one, other) and getattr(one, "placements", ()) == getattr(other, "placements", ())


def placed_as(like: Any, tensor: Any) -> Tensor:
    """``tensor``, in the same parts as ``like``, which is over the same processes."""
    return tensor if are_spread_alike(tensor, like) else tensor.redistribute(placements=like.placements)


def described(tensor: Any) -> str:
    """How it is spread, in words."""
    return f"{tensor.placements} over {tensor.device_mesh}" if is_spread(tensor) else "in one piece"


def groups_over(tensor: Any) -> tuple[Any, ...]:
    """The process groups that have other parts of ``tensor``: a sum over one after the other is one over all parts."""
    if not is_spread(tensor):
        return ()
    mesh, placements = tensor.device_mesh, tensor.placements
    return tuple(mesh.get_group(i) for i, placement in enumerate(placements) if not placement.is_replicate())


def ranks_of(groups: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """The processes of each group: groups of the same processes do the same."""
    return tuple(tuple(torch.distributed.get_process_group_ranks(group)) for group in groups)


def ranks_of_mesh(tensor: Any) -> set[int]:
    """All processes that ``tensor`` is spread over."""
    return set(tensor.device_mesh.mesh.flatten().tolist()) if is_spread(tensor) else set()


def groups_of_meshes(tensors: Sequence[Any]) -> list[Any]:
    """Process groups along all directions of the tensors' meshes."""
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if is_spread(tensor))
    return list({ranks_of([group]): group for mesh in meshes for group in mesh.get_all_groups()}.values())


def summed(values: Tensor, groups: Sequence[Any]) -> Tensor:
    """The sum of ``values`` over the processes of ``groups``, one group after the other; ``values`` are used up."""
    for group in groups:
        torch.distributed.all_reduce(values, group=group)
    return values
