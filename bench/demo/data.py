"""The data that the demo trains on: images, their split, and bad weights of the loss terms."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from bench.workloads.digits import CLASSES, class_losses

BATCH = 64
WORST_WEIGHT = 1000.0  # of U(0, 1000)
DECADES = 3.0  # of 10^U(-3, 3)
MNIST_IMAGES = 1200  # of the 60,000: fewer than UCI digits has, since larger, so that either takes minutes
MNIST_FOLDERS = (Path("data"), Path.home() / "data")


@dataclass(frozen=True)
class Images:
    """Labeled square gray images."""

    name: str
    pixels: Tensor  # [N, 1, side, side], in [0, 1]
    labels: Tensor  # [N], the class of each


@cache
def load_images() -> Images:
    """Load MNIST where a copy lies on this machine, else the UCI digits that scikit-learn ships. Download nothing."""
    for folder in MNIST_FOLDERS:
        try:
            mnist = importlib.import_module("torchvision.datasets").MNIST(folder, train=True, download=False)
        except (ImportError, RuntimeError):  # no torchvision, or no MNIST in the folder
            continue
        pixels = mnist.data[:MNIST_IMAGES, None].float() / 255
        # Every second pixel is enough to tell digits apart, and a quarter of the work.
        return Images("MNIST", functional.avg_pool2d(pixels, 2), mnist.targets[:MNIST_IMAGES])
    digits = load_digits()
    pixels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    return Images("UCI digits", pixels, torch.tensor(digits.target))


def split(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions of the training (60 %), validation (15 %) and test (25 %) images, stratified by class."""
    rest, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.2, stratify=labels[rest], random_state=seed)
    return torch.from_numpy(train), torch.from_numpy(validation), torch.from_numpy(test)


def draw_uniform(seed: int) -> list[float]:
    """Draw a weight per class as the paper does: 1 for class 0, uniform up to WORST_WEIGHT for the others."""
    return [1.0, *np.random.default_rng(seed).uniform(0, WORST_WEIGHT, CLASSES - 1).tolist()]


def draw_decades(seed: int) -> list[float]:
    """Draw a weight per class over six decades, each as likely as the others."""
    return (10 ** np.random.default_rng(seed).uniform(-DECADES, DECADES, CLASSES)).tolist()


# By name: the weights of the classes from a seed.
WEIGHTS: dict[str, Callable[[int], list[float]]] = {
    "balanced sum": lambda seed: [1.0] * CLASSES,
    "U(0, 1000)": draw_uniform,
    "10^U(-3, 3)": draw_decades,
}


def prior_losses(labels: Tensor, weights: list[float]) -> dict[str, float]:
    """Return the class losses of a model that knows only how frequent the classes are among ``labels``."""
    frequencies = torch.bincount(labels, minlength=CLASSES) / len(labels)
    losses = class_losses(frequencies.log().expand(len(labels), CLASSES), labels, weights)
    return {term: loss.item() for term, loss in losses.items()}


def batches(positions: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Return the positions in random order, in full batches. The rest waits for another epoch."""
    shuffled = positions[torch.randperm(len(positions), generator=generator)]
    return (batch for batch in shuffled.split(BATCH) if len(batch) == BATCH)


def endless_batches(positions: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Return the batches of epoch after epoch."""
    return itertools.chain.from_iterable(batches(positions, generator) for _ in itertools.count())
