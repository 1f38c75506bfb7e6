"""Tensors that are spread over processes: DTensors, as FSDP2 and tensor parallelism make them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_spread(tensor: Any) -> bool:
    """Whether it is a DTensor; without importing what makes them."""
    return hasattr(tensor, "device_mesh")


def is_partial(tensor: Any) -> bool:
    """Whether it is a DTensor whose value is a sum over processes that is yet to be made."""
    return is_spread(tensor) and any(placement.is_partial() for placement in tensor.placements)


def local(tensor: Any) -> Tensor:
    """The part of ``tensor`` that is in this process, in the same memory."""
    if not is_spread(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def spread_like(like: Any, part: Tensor) -> Tensor:
    """The tensor of which ``part`` is in this process, where it is spread as ``like`` is."""
    if not is_spread(like):
        return part
    how = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    return type(like).from_local(part, like.device_mesh, like.placements, **how)


def over_same_processes(one: Any, other: Any) -> bool:
    """Whether both are in one piece, or spread over the same processes."""
    return is_spread(one) == is_spread(other) and (not is_spread(one) or one.device_mesh == other.device_mesh)


def are_spread_alike(one: Any, other: Any) -> bool:
    """Whether both are in one piece, or over the same processes in the same parts."""
    return over_same_processes(one, other) and (not is_spread(one) or one.placements == other.placements)


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


def groups_of_meshes(tensors: Sequence[Any]) -> list[Any]:
    """Process groups along all directions of the tensors' meshes."""
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if is_spread(tensor))
    return list(dict.fromkeys(mesh.get_group(i) for mesh in meshes for i in range(mesh.ndim)))


def summed(values: Tensor, groups: Sequence[Any]) -> Tensor:
    """The sum of ``values`` over the processes of ``groups``, one group after the other; ``values`` are used up."""
    for group in groups:
        torch.distributed.all_reduce(values, group=group)
    return values
