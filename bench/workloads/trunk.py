"""A large trunk that many small heads share, with a loss each: where K backward passes and K gradients cost most."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, LAYERS, TERMS, BATCH = 2048, 4, 8, 64


@dataclass(frozen=True)
class Trunk:
    """The network and its batch."""

    trunk: nn.Sequential
    heads: nn.ModuleList
    inputs: Tensor
    targets: Tensor  # [TERMS, BATCH, 4]

    @property
    def params(self) -> list[nn.Parameter]:
        """Return all parameters."""
        return [*self.trunk.parameters(), *self.heads.parameters()]

    @property
    def last_shared(self) -> list[nn.Parameter]:
        """Return the parameters of the last layer that all heads share."""
        return list(self.trunk[-2].parameters())

    def features(self) -> Tensor:
        """Return what all heads read."""
        return self.trunk(self.inputs)

    def losses(self, features: Tensor) -> dict[str, Tensor]:
        """Return each head's loss."""
        outputs = [head(features) for head in self.heads]
        pairs = zip(outputs, self.targets, strict=True)
        return {f"head {k}": functional.mse_loss(output, target) for k, (output, target) in enumerate(pairs)}


def make_trunk(device: torch.device) -> Trunk:
    """Make the same network and batch each time."""
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    trunk, heads = nn.Sequential(*layers), nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(TERMS))
    inputs, targets = torch.randn(BATCH, WIDTH), torch.randn(TERMS, BATCH, 4)
    return Trunk(trunk.to(device), heads.to(device), inputs.to(device), targets.to(device))
