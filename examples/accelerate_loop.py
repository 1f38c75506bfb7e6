"""Two losses in a loop with Accelerate: accumulation, clipping, a scheduler. The glue is three lines, marked by #.

    python examples/accelerate_loop.py             # ten seconds
    accelerate launch --cpu --num_processes 2 examples/accelerate_loop.py

Tested with accelerate 1.15.
"""

import argparse

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from mtadam_fused import BalancedAdam


def losses_of(out: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {
        "size": 1000 * (out[:, 0] - targets[:, 0]).square().mean(),
        "angle": (out[:, 1] - targets[:, 1]).abs().mean(),
    }


def make_data(rows: int = 4096) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 8, generator=generator)
    return TensorDataset(inputs, torch.stack([inputs[:, :4].norm(dim=1), torch.atan2(inputs[:, 0], inputs[:, 1])], 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    # The optimizer averages the gradients over all processes, so Accelerate must not (see no_sync below).
    optimizer = BalancedAdam(network.named_parameters(), lr=1e-3, process_group=torch.distributed.group.WORLD)
    scheduler = CosineAnnealingLR(optimizer, args.steps * accelerator.num_processes)
    loader = DataLoader(make_data(), batch_size=64, shuffle=True)
    network, optimizer, scheduler, loader = accelerator.prepare(network, optimizer, scheduler, loader)
    balanced = optimizer.optimizer  # what Accelerate has wrapped

    step, averages = 0, []
    while step < args.steps:
        for inputs, targets in loader:
            with accelerator.accumulate(network), accelerator.no_sync(network):  # forward and backward passes
                losses = losses_of(network(inputs), targets)
                parts = accelerator.gradient_accumulation_steps
                total = balanced.backward({name: loss / parts for name, loss in losses.items()})
                if accelerator.sync_gradients:
                    balanced.clip_grad_norm_(1.0)  # not accelerator's, which finds no gradients
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            averages.append(parts * total.item())
            step += accelerator.sync_gradients
            if step == args.steps:
                break
    first, last = (torch.tensor(values).mean().item() for values in (averages[:10], averages[-10:]))
    accelerator.print(f"total loss: {first:.3g} in the beginning, {last:.3g} after {step} steps")
    accelerator.end_training()


if __name__ == "__main__":
    main()
