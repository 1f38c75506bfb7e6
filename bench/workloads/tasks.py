"""Three small models with several losses on real data that scikit-learn ships; each batch gives a mapping of losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from sklearn.datasets import load_diabetes, load_digits, load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from bench.workloads.digits import class_losses, make_network

BATCH = 64


@dataclass(frozen=True)
class Task:
    """A model and what it is trained on."""

    network: nn.Module
    batches: Sequence[tuple[Tensor, ...]]
    losses: Callable[[nn.Module, tuple[Tensor, ...]], dict[str, Tensor]]

    def stream(self) -> Callable[[], dict[str, Tensor]]:
        """Return a function that returns the losses of the next batch. The batches repeat."""
        batches = cycle(self.batches)
        return lambda: self.losses(self.network, next(batches))


def digits(device: torch.device) -> list[tuple[Tensor, ...]]:
    """Load UCI digits in batches: images [N, 1, 8, 8] in [0, 1], and labels."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32, device=device)[:, None]
    labels = torch.tensor(data.target, device=device)
    pairs = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return [pair for pair in pairs if len(pair[1]) == BATCH and len(pair[1].unique()) == 10]


def digit_classes(device: torch.device) -> Task:
    """Make the demo's CNN with a loss per class: K = 10."""

    def losses(network: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        images, labels = batch
        return class_losses(network(images), labels, [1.0] * 10)

    return Task(make_network(8, seed=0).to(device), digits(device), losses)


def diabetes_quantiles(device: torch.device) -> Task:
    """Predict the 10 % and 90 % quantiles of diabetes progression from ten measurements, by an MLP: K = 2."""
    torch.manual_seed(0)
    data = load_diabetes(scaled=True)
    features = torch.tensor(data.data, dtype=torch.float32, device=device)
    targets = torch.tensor(data.target, dtype=torch.float32, device=device)
    targets = (targets - targets.mean()) / targets.std()
    network = nn.Sequential(nn.Linear(10, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 2))

    def pinball(error: Tensor, quantile: float) -> Tensor:
        return torch.maximum(quantile * error, (quantile - 1) * error).mean()

    def losses(network: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        inputs, target = batch
        low, high = network(inputs).unbind(dim=1)
        return {"10 %": pinball(target - low, 0.1), "90 %": pinball(target - high, 0.9)}

    return Task(network.to(device), list(zip(features.split(BATCH), targets.split(BATCH), strict=True)), losses)


class Residual(nn.Module):
    """A residual block without normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return differences of neighbors down and across."""
    return image.diff(dim=-2), image.diff(dim=-1)


def super_resolution(device: torch.device) -> Task:
    """Double the resolution of photographs: absolute, squared and edge error, total variation: K = 4."""
    torch.manual_seed(0)
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images]).float() / 255
    patches = photographs.permute(0, 3, 1, 2).unfold(2, 32, 32).unfold(3, 32, 32)  # [2, 3, rows, columns, 32, 32]
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous().to(device)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        *(Residual(32) for _ in range(3)),
        nn.Conv2d(32, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )

    def losses(network: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        small, large = batch
        out = network(small)
        down, across = edges(out)
        true_down, true_across = edges(large)
        return {
            "absolute": functional.l1_loss(out, large),
            "squared": functional.mse_loss(out, large),
            "edges": functional.l1_loss(down, true_down) + functional.l1_loss(across, true_across),
            "variation": down.abs().mean() + across.abs().mean(),
        }

    batches = [(functional.avg_pool2d(large, 2), large) for large in patches.split(16) if len(large) == 16]
    return Task(network.to(device), batches, losses)


# By name; each makes the same task each time.
TASKS: dict[str, Callable[[torch.device], Task]] = {
    "digit_classes": digit_classes,
    "diabetes_quantiles": diabetes_quantiles,
    "super_resolution": super_resolution,
}
