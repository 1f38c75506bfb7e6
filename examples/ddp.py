"""Two losses in several processes: each term's gradient is averaged while the next one is differentiated.

torchrun --nproc_per_node 2 examples/ddp.py
"""

import argparse

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtadam_fused import BalancedAdam


def losses_of(out: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    size, angle = inputs[:, :4].norm(dim=1), torch.atan2(inputs[:, 0], inputs[:, 1])
    return {"size": 1000 * (out[:, 0] - size).square().mean(), "angle": (out[:, 1] - angle).abs().mean()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", dist.get_rank() % torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)).to(device)
    model = DistributedDataParallel(network)
    optimizer = BalancedAdam(model.named_parameters(), lr=1e-3, process_group=dist.group.WORLD)
    torch.manual_seed(dist.get_rank())  # other data in each process
    for step in range(args.steps):
        inputs = torch.randn(64, 8, device=device)
        optimizer.zero_grad()
        with model.no_sync():  # the optimizer averages
            total = optimizer.backward(losses_of(model(inputs), inputs))
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        if dist.get_rank() == 0 and (step + 1) % max(1, args.steps // 4) == 0:
            print(f"step {step + 1}: total loss {total.item():.3g}")
    own = torch.cat([p.detach().flatten() for p in network.parameters()])
    first = own.clone()
    dist.broadcast(first, 0)
    print(f"process {dist.get_rank()}: replicas are equal: {torch.equal(own, first)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
