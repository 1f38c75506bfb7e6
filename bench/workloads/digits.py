"""A small CNN for digits with one loss term per class: what the demo and a benchmark train."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
TERMS = [str(c) for c in range(CLASSES)]
CHANNELS = (16, 32)


def make_network(side: int, seed: int) -> nn.Sequential:
    """Make two convolutions with pooling and a linear layer, for images of ``side`` pixels a side."""
    torch.manual_seed(seed)
    first, second = CHANNELS
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(1, first, 3, padding=1))
    network.add_module("relu1", nn.ReLU())
    network.add_module("pool1", nn.MaxPool2d(2))
    network.add_module("conv2", nn.Conv2d(first, second, 3, padding=1))
    network.add_module("relu2", nn.ReLU())
    network.add_module("pool2", nn.MaxPool2d(2))
    network.add_module("flatten", nn.Flatten())
    network.add_module("linear", nn.Linear(second * (side // 4) ** 2, CLASSES))
    return network


def class_losses(logits: Tensor, labels: Tensor, weights: list[float]) -> dict[str, Tensor]:
    """Return the weighted mean cross entropy of each class in the batch. Absent classes are left out."""
    losses = functional.cross_entropy(logits, labels, reduction="none")
    members = {c: labels == c for c in labels.unique().tolist()}
    return {TERMS[c]: weights[c] * losses[member].mean() for c, member in members.items()}
