"""One training run of the demo: by one strategy, at one learning rate, from one seed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.demo.data import (
    WEIGHTS,
    Images,
    batches,
    load_images,
    prior_losses,
    split,
)
from bench.demo.strategies import BY_NAME, Strategy, Task
from bench.workloads.digits import TERMS, class_losses, make_network
from mtadam_fused import MTAdam, Recorder


@dataclass(frozen=True)
class Job:
    """One training run, in plain values that can be sent to another process."""

    strategy: str
    lr: float
    seed: int
    epochs: int


@dataclass
class Run:
    """Results of one training run: accuracies after each epoch, and MTAdam's last scales, by parameter and class."""

    validation: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    scales: dict[str, list[float]] = field(default_factory=dict)


class Training:
    """The seed's initial network, split, order of batches and weights, with a strategy's optimizer."""

    def __init__(self, images: Images, strategy: Strategy, lr: float, seed: int) -> None:
        self.images = images
        self.training, self.validation, self.test = split(images.labels, seed)
        self.weights = WEIGHTS[strategy.weights](seed)
        self.network = make_network(images.pixels.shape[-1], seed)
        priors = prior_losses(images.labels[self.training], self.weights)
        self.optimizer = strategy.make(Task(self.network, lr, seed, priors))
        self.generator = torch.Generator().manual_seed(seed)

    def epoch(self) -> Iterator[Tensor]:
        """Return the positions of an epoch's batches."""
        return batches(self.training, self.generator)

    def step(self, batch: Tensor) -> None:
        """Make one step on the terms in the batch."""
        losses = class_losses(self.network(self.images.pixels[batch]), self.images.labels[batch], self.weights)
        self.optimizer.zero_grad()
        self.optimizer.backward(losses)
        self.optimizer.step()

    @torch.no_grad()
    def accuracy(self, positions: Tensor) -> float:
        """Return the fraction of the images at ``positions`` that the network classifies correctly."""
        guesses = self.network(self.images.pixels[positions]).argmax(dim=1)
        return (guesses == self.images.labels[positions]).double().mean().item()


def train(job: Job) -> Run:
    """Train a network from its beginning."""
    training = Training(load_images(), BY_NAME[job.strategy], job.lr, job.seed)
    optimizer = training.optimizer
    recorder = Recorder(optimizer, every=1, max_rows=1) if isinstance(optimizer, MTAdam) else None
    run = Run()
    for _ in range(job.epochs):
        for batch in training.epoch():
            training.step(batch)
        run.validation.append(training.accuracy(training.validation))
        run.test.append(training.accuracy(training.test))
    if recorder is not None:
        (last,) = recorder.rows()
        run.scales = {p: [last["scale"][term][p] for term in TERMS] for p, _ in training.network.named_parameters()}
    return run
