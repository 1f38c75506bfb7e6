"""A small network whose heads share a trunk: a loss per head, and a count of the backward passes through the trunk."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

TERMS = ("a", "b", "c")
TIMES = {"a": 1.0, "b": 100.0, "c": 0.01}


@dataclass
class Trunk:
    """The network: ``first`` and ``last`` are shared, each head is of one term."""

    dtype: torch.dtype = torch.float64
    passes: int = 0  # backward passes that have reached ``first``
    first: nn.Linear = field(init=False)
    last: nn.Linear = field(init=False)
    heads: nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 7, dtype=self.dtype), nn.Linear(7, 6, dtype=self.dtype)
        self.heads = nn.ModuleDict({term: nn.Linear(6, 2, dtype=self.dtype) for term in TERMS})

    def parameters(self) -> list[nn.Parameter]:
        return [p for module in (self.first, self.last, self.heads) for p in module.parameters()]

    def features(self, seed: int) -> Tensor:
        """Return what all heads read, of the batch of this seed."""
        x = torch.randn(11, 5, dtype=self.dtype, generator=torch.Generator().manual_seed(seed))
        h = self.first(x)
        h.register_hook(self._count)
        return torch.tanh(self.last(torch.tanh(h)))

    def losses(self, features: Tensor, terms: tuple[str, ...] = TERMS) -> dict[str, Tensor]:
        return {term: TIMES[term] * (self.heads[term](features) - len(term)).square().mean() for term in terms}

    def _count(self, _: Tensor) -> None:
        self.passes += 1


def train(trunk: Trunk, step: Callable[[dict[str, Tensor]], None], steps: int = 6) -> list[Tensor]:
    """Give ``step`` the losses of batch after batch, with a term absent from the third; return the parameters."""
    for seed in range(steps):
        step(trunk.losses(trunk.features(seed), TERMS[:2] if seed == 2 else TERMS))
    return [p.detach() for p in trunk.parameters()]
