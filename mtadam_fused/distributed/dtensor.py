"""DTensors, as FSDP2 and tensor parallelism make them. Nothing here imports torch.distributed.tensor."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_dtensor(tensor: Any) -> bool:
    """Return whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "device_mesh")


def is_partial(tensor: Any) -> bool:
    """Return whether ``tensor`` is a DTensor whose sum over processes is still pending."""
    return is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements)


@torch.no_grad()
def to_locals(tensors: Iterable[Any]) -> list[Any]:
    """Return the local tensor of each DTensor, in the same memory. Anything else stays as it is."""
    return [wait_async(tensor.to_local()) if is_dtensor(tensor) else tensor for tensor in tensors]


def to_local(tensor: Any) -> Any:
    """Return the local tensor of a DTensor, in the same memory. Anything else stays as it is."""
    return to_locals([tensor])[0] if is_dtensor(tensor) else tensor


def wait_async(tensor: Any) -> Tensor:
    """Return ``tensor``, or the result of the collective that is still to fill it."""
    return tensor if type(tensor) is Tensor else getattr(tensor, "wait", lambda: tensor)()


def full_tensor(tensor: Any) -> Tensor:
    """Gather a DTensor in every process. A plain tensor stays as it is."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def version(tensor: Tensor) -> tuple[int, int]:
    """Return what changes when ``tensor`` or its local tensor is modified in place."""
    return tensor._version, to_local(tensor)._version


def dtensor_like(like: Any, local: Tensor) -> Tensor:
    """Make ``local`` this process's part of a tensor with the mesh and placements of ``like``."""
    if not is_dtensor(like):
        return local
    options = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    return type(like).from_local(local, like.device_mesh, like.placements, **options)


def same_mesh(one: Any, other: Any) -> bool:
    """Return whether both are plain tensors, or DTensors on the same mesh."""
    mesh, other_mesh = getattr(one, "device_mesh", None), getattr(other, "device_mesh", None)
    return mesh is other_mesh or mesh == other_mesh


def same_placements(one: Any, other: Any) -> bool:
    """Return whether both are plain tensors, or DTensors on the same mesh with the same placements."""
    return same_mesh(one, other) and getattr(one, "placements", ()) == getattr(other, "placements", ())


def redistribute_like(like: Any, tensor: Any) -> Tensor:
    """Give ``tensor`` the placements of ``like``, which is on the same mesh."""
    return tensor if same_placements(tensor, like) else tensor.redistribute(placements=like.placements)


def describe_placement(tensor: Any) -> str:
    """Return the placements and the mesh of ``tensor``, for error messages."""
    return f"{tensor.placements} on {tensor.device_mesh}" if is_dtensor(tensor) else "a plain tensor"


def shard_process_groups(tensor: Any) -> tuple[Any, ...]:
    """Return the process groups whose processes hold other shards of ``tensor``.

    A sum over one group after the other is the sum over all shards.
    """
    if not is_dtensor(tensor):
        return ()
    mesh, placements = tensor.device_mesh, tensor.placements
    return tuple(mesh.get_group(i) for i, placement in enumerate(placements) if not placement.is_replicate())


def group_ranks(process_groups: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """Return the ranks of each process group. Groups with the same ranks are interchangeable."""
    return tuple(tuple(torch.distributed.get_process_group_ranks(group)) for group in process_groups)


def mesh_ranks(tensor: Any) -> set[int]:
    """Return the ranks on the mesh of ``tensor``; none for a plain tensor."""
    return set(tensor.device_mesh.mesh.flatten().tolist()) if is_dtensor(tensor) else set()


def mesh_process_groups(tensors: Sequence[Any]) -> list[Any]:
    """Return the process groups along all dimensions of the tensors' meshes, each set of ranks once."""
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if is_dtensor(tensor))
    return list({group_ranks([group]): group for mesh in meshes for group in mesh.get_all_groups()}.values())


def all_reduce_sum_(values: Tensor, process_groups: Sequence[Any]) -> Tensor:
    """Sum ``values`` over the processes of each group, one group after the other, in place, and return them."""
    for group in process_groups:
        torch.distributed.all_reduce(values, group=group)
    return values
