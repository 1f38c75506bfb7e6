"""Two tasks on a shared trunk: which digit it is, and how slanted it is."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.demo.data import endless_batches, load_images, split
from bench.quality.problem import EQUAL, Losses, Problem, Training, Weighting, factors
from bench.workloads.digits import CLASSES

WIDTH = 64
DIGIT, SLANT = "digit", "slant"


def slants(pixels: Tensor) -> Tensor:
    """Return how far the ink of each image moves sideways a row: the regression of columns on rows, standardized."""
    ink = pixels[:, 0] / pixels.sum(dim=(1, 2, 3))[:, None, None]
    place = torch.arange(pixels.shape[-1], dtype=pixels.dtype)
    row = place[:, None] - (ink.sum(dim=2) @ place)[:, None, None]
    column = place - (ink.sum(dim=1) @ place)[:, None, None]
    slant = (ink * row * column).sum(dim=(1, 2)) / (ink * row * row).sum(dim=(1, 2))
    return (slant - slant.mean()) / slant.std()


def start(seed: int) -> Training:
    """Make the network, its two losses, and the mean of accuracy and explained variance."""
    images = load_images()
    pixels, targets = images.pixels.flatten(1), slants(images.pixels)
    training, validation, test = split(images.labels, seed)
    torch.manual_seed(seed)
    trunk = [nn.Linear(pixels.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    network = nn.Sequential(*trunk, nn.Linear(WIDTH, CLASSES + 1))
    stream = endless_batches(training, torch.Generator().manual_seed(seed))

    def predict(positions: Tensor) -> tuple[Tensor, Tensor]:
        out = network(pixels[positions])
        return out[:, :CLASSES], out[:, CLASSES]

    def losses() -> Losses:
        batch = next(stream)
        logits, guesses = predict(batch)
        return {
            DIGIT: functional.cross_entropy(logits, images.labels[batch]),
            SLANT: functional.mse_loss(guesses, targets[batch]),
        }

    @torch.no_grad()
    def quality(positions: Tensor) -> float:
        logits, guesses = predict(positions)
        accuracy = (logits.argmax(dim=1) == images.labels[positions]).float().mean()
        explained = 1 - (guesses - targets[positions]).square().mean() / targets[positions].var(correction=0)
        return ((accuracy + explained) / 2).item()

    return Training(network, losses, lambda: quality(test), lambda: quality(validation))


PROBLEM = Problem(
    name="two tasks",
    start=start,
    steps=480,  # 30 epochs
    weightings=(
        EQUAL,
        Weighting("slant 100", factors(SLANT, by=1e2)),
        Weighting("slant 0.01", factors(SLANT, by=1e-2)),
    ),
    score="mean of accuracy and explained variance, %",
    worst=0.0,
    orders={"digit first": (DIGIT, SLANT), "slant first": (SLANT, DIGIT)},
    higher_is_better=True,
    percent=True,
)
