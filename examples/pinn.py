"""Solve u'' = -u + f on [0, 1] with a network: a residual in the interior, and values at the boundary.

python examples/pinn.py           # about a minute; compares BalancedAdam with Adam on the plain sum
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

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


def train(balanced: bool, steps: int) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    ends = torch.tensor([[0.0], [1.0]])
    make = BalancedAdam if balanced else torch.optim.Adam
    optimizer = make(network.parameters(), lr=1e-3)
    for _ in range(steps):
        losses = losses_of(network, torch.rand(64, 1), ends)
        optimizer.zero_grad()
        if isinstance(optimizer, BalancedAdam):
            optimizer.backward(losses)
        else:
            sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=Path("build/examples/pinn.png"))
    args = parser.parse_args()
    x = torch.linspace(0, 1, 200).unsqueeze(1)
    exact = solution(x)
    figure, axis = plt.subplots(figsize=(6, 3.5))
    axis.plot(x, exact, "k--", label="exact")
    for balanced in (False, True):
        network = train(balanced, args.steps)
        with torch.no_grad():
            found = network(x)
        error = ((found - exact).norm() / exact.norm()).item()
        name = "BalancedAdam" if balanced else "Adam on the sum"
        print(f"{name}: relative error {error:.2g}")
        axis.plot(x, found, label=f"{name}, error {error:.2g}")
    axis.set(xlabel="x", ylabel="u(x)")
    axis.legend()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
