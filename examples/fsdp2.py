"""Two losses on a network that FSDP2 shards: the optimizer's state is sharded too, norms are of the full gradients.

    torchrun --nproc_per_node 2 examples/fsdp2.py

On the CPU it needs torch 2.11 or newer.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mtadam_fused import BalancedAdam

KIND = "cuda" if torch.cuda.is_available() else "cpu"


def losses_of(out: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    size, angle = inputs[:, :4].norm(dim=1), torch.atan2(inputs[:, 0], inputs[:, 1])
    return {"size": 1000 * (out[:, 0] - size).square().mean(), "angle": (out[:, 1] - angle).abs().mean()}


def make() -> tuple[nn.Module, BalancedAdam]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)).to(KIND)
    fully_shard(network, mesh=init_device_mesh(KIND, (dist.get_world_size(),)))
    # The terms' names make a new optimizer's state complete, as loading needs it.
    return network, BalancedAdam(network.named_parameters(), lr=1e-3, terms=("size", "angle"))


def train(network: nn.Module, optimizer: BalancedAdam, steps: int) -> float:
    """Return the last batch's total loss, of this process."""
    total = torch.zeros(())
    for _ in range(steps):
        inputs = torch.randn(64, 8, device=KIND)
        optimizer.zero_grad()
        total = optimizer.backward(losses_of(network(inputs), inputs))
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
    return total.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    if KIND == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank(0))
    dist.init_process_group("nccl" if KIND == "cuda" else "gloo")
    network, optimizer = make()
    torch.manual_seed(dist.get_rank())
    losses = [train(network, optimizer, args.steps // 2)]

    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    model_state, optimizer_state = get_state_dict(network, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=Path(folder[0]))
    network, optimizer = make()  # as a new run would
    model_state, optimizer_state = get_state_dict(network, optimizer)
    dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=Path(folder[0]))
    set_state_dict(network, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    losses.append(train(network, optimizer, args.steps - args.steps // 2))

    if dist.get_rank() == 0:
        print(f"total loss: {losses[0]:.3g} at the checkpoint, {losses[1]:.3g} after {args.steps} steps")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
