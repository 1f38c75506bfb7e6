"""Ten classes of digits, a loss term each: the demo's experiment with more kinds of bad weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.demo.data import WEIGHTS, endless_batches, load_images, split
from bench.demo.strategies import DECADES, PAPER
from bench.quality.problem import Losses, Problem, Training, Weighting
from bench.workloads.digits import CLASSES, TERMS, class_losses, make_network

EPOCHS = 20
HARDEST = "8"  # of the largest test loss


def draw(name: str) -> Callable[[int], dict[str, float]]:
    """Return the demo's drawing of weights that has this name."""
    return lambda seed: dict(zip(TERMS, WEIGHTS[name](seed), strict=True))


def start(seed: int) -> Training:
    """Make the demo's network with its split and batches."""
    images = load_images()
    training, validation, test = split(images.labels, seed)
    network = make_network(images.pixels.shape[-1], seed)
    stream = endless_batches(training, torch.Generator().manual_seed(seed))

    def losses() -> Losses:
        batch = next(stream)
        return class_losses(network(images.pixels[batch]), images.labels[batch], [1.0] * CLASSES)

    @torch.no_grad()
    def accuracy(positions: Tensor) -> float:
        guesses = network(images.pixels[positions]).argmax(dim=1)
        return (guesses == images.labels[positions]).double().mean().item()

    return Training(network, losses, lambda: accuracy(test), lambda: accuracy(validation))


PROBLEM = Problem(
    name="digits",
    start=start,
    steps=EPOCHS * 16,  # of the 1078 training images, 16 full batches an epoch
    weightings=tuple(Weighting(name, draw(name)) for name in (PAPER, DECADES)),
    score="test accuracy, %",
    worst=0.0,
    orders={
        "class 0 first": tuple(TERMS),
        "class 8 first": (HARDEST, *(term for term in TERMS if term != HARDEST)),
    },
    higher_is_better=True,
    percent=True,
    rates=(1e-3, 3e-3, 1e-2, 3e-2),
)
