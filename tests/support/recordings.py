"""A small network that a Recorder records."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam, Recorder
from mtadam_fused.rules import PCGrad

MAKERS: dict[str, Callable[..., Any]] = {
    "MTAdam": MTAdam,
    "BalancedAdam": BalancedAdam,
    "CombinedAdam": lambda params, **options: CombinedAdam(params, PCGrad(seed=0), **options),
}
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def losses_of(network: nn.Module, *more: str) -> dict[str, Tensor]:
    out = network(torch.randn(5, 3))
    return {"a": out.square().mean(), "b": out.abs().mean()} | {name: out.sum() for name in more}


def step(optimizer: Any, losses: dict[str, Tensor]) -> None:
    optimizer.backward(losses)
    optimizer.step()


def recorded(name: str, steps: int = 3) -> Recorder:
    """Record some steps, on terms a and b and, from the second on, c."""
    network = make_network()
    optimizer = MAKERS[name](network.named_parameters())
    seen = Recorder(optimizer, every=1)
    for number in range(steps):
        step(optimizer, losses_of(network, *["c"] * (number > 0)))
    return seen
