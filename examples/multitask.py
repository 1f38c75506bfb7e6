"""Two tasks on one trunk: which digit an image shows, and where its ink is. Four strategies in one line each.

python examples/multitask.py      # ten seconds
"""

import argparse
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mtadam_fused import BalancedAdam
from mtadam_fused.rules import GradientNormalization
from mtadam_fused.weighting import InitialLoss, RuleWeighting

Losses = dict[str, Tensor]


class Network(nn.Module):
    """Return the features that both heads read, and what the heads say."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.digit, self.center = nn.Linear(32, 10), nn.Linear(32, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(images)
        return features, self.digit(features), self.center(features)


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Return images, their digits, and the centers of their ink in pixels."""
    images = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    ink = images.reshape(-1, 8, 8)
    at = torch.arange(8.0)
    rows, columns = (ink.sum(dim) @ at / ink.sum((1, 2)) for dim in (2, 1))
    return images, torch.tensor(load_digits().target), torch.stack([rows, columns], dim=1)


def train(strategy: str, steps: int) -> tuple[float, float]:
    """Return the accuracy in percent and the error of the center in pixels, on images not trained on."""
    torch.manual_seed(0)
    images, digits, centers = data()
    order = torch.randperm(len(images))
    known, new = order[:1200], order[1200:]
    network = Network()
    if strategy == "BalancedAdam":
        optimizer: torch.optim.Optimizer = BalancedAdam(network.parameters(), lr=1e-3)
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    equal, initial = RuleWeighting(GradientNormalization()), InitialLoss()
    totals: dict[str, Callable[[Losses, Tensor], Tensor]] = {
        "the plain sum": lambda losses, _: sum(losses.values(), torch.zeros(())),
        "InitialLoss": lambda losses, _: initial(losses),
        "GradientNormalization on the features": lambda losses, features: equal(losses, features=features),
    }
    for _ in range(steps):
        rows = known[torch.randint(len(known), (64,))]
        features, digit, center = network(images[rows])
        # A badly chosen unit: hundredths of a pixel, squared.
        losses = {"digit": cross_entropy(digit, digits[rows]), "center": 1e4 * (center - centers[rows]).square().mean()}
        optimizer.zero_grad()
        if isinstance(optimizer, BalancedAdam):
            optimizer.backward(losses)
        else:
            totals[strategy](losses, features).backward()
        optimizer.step()
    with torch.no_grad():
        _, digit, center = network(images[new])
    accuracy = (digit.argmax(1) == digits[new]).float().mean().item()
    return 100 * accuracy, (center - centers[new]).norm(dim=1).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    for strategy in ("the plain sum", "InitialLoss", "GradientNormalization on the features", "BalancedAdam"):
        accuracy, error = train(strategy, args.steps)
        print(f"{strategy}: {accuracy:.1f} % of the digits, the center to {error:.3f} pixels")


if __name__ == "__main__":
    main()
