"""Solve u'' = -u + f on [0, 1] with a network: a residual in the interior, and values at the boundary.

python examples/pinn.py           # ten seconds; compares BalancedAdam with Adam on the plain sum
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from mtadam_fused import BalancedAdam

WAVES = 3 * math.pi


def solution(x: Tensor) -> Tensor:
    return (WAVES * x).sin() + x


def derivative(u: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def losses_of(network: nn.Module, x: Tensor, ends: Tensor) -> dict[str, Tensor]:
    x = x.requires_grad_()
    u = network(x)
    curvature = derivative(derivative(u, x), x)
    right_side = -(WAVES**2) * (WAVES * x).sin() + solution(x)
    return {
        "residual": (curvature + u - right_side).square().mean(),
        "boundary": (network(ends) - solution(ends)).square().mean(),
    }


def train(balanced: bool, steps: int) -> list[float]:
    """Return the relative error of u, at the start and after each hundredth of the steps."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    points, ends = torch.linspace(0, 1, 200).unsqueeze(1), torch.tensor([[0.0], [1.0]])
    make = BalancedAdam if balanced else torch.optim.Adam
    optimizer = make(network.parameters(), lr=1e-3)
    scheduler = CosineAnnealingLR(optimizer, steps + 1)
    errors = []
    for step in range(steps + 1):
        if step % max(1, steps // 100) == 0:
            with torch.no_grad():
                errors.append(((network(points) - solution(points)).norm() / solution(points).norm()).item())
        losses = losses_of(network, torch.rand(64, 1), ends)
        optimizer.zero_grad()
        if isinstance(optimizer, BalancedAdam):
            optimizer.backward(losses)
        else:
            sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        scheduler.step()
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("build/examples/pinn.png"))
    args = parser.parse_args()
    figure, axis = plt.subplots(figsize=(6, 3.5))
    for balanced in (False, True):
        errors = train(balanced, args.steps)
        name = "BalancedAdam" if balanced else "Adam on the sum"
        print(f"{name}: relative error {errors[len(errors) // 2]:.2g} halfway, {errors[-1]:.2g} at the end")
        axis.semilogy(torch.linspace(0, args.steps, len(errors)), errors, label=name)
    axis.set(xlabel="step", ylabel="relative error of u")
    axis.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
