"""Measure the cost of a strategy: backward passes, memory and time."""

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.demo.data import Images, endless_batches
from bench.demo.strategies import ADAM, BY_NAME
from bench.demo.training import Training
from bench.harness.measure import iter_tensors
from bench.workloads.digits import TERMS
from mtadam_fused.optimizer import TermOptimizer

STEPS = 5  # in a turn


@dataclass(frozen=True)
class Cost:
    """The cost of one step on all ten terms."""

    passes: int  # backward, of all layers
    state_bytes: int  # per parameter
    gradient_bytes: int  # per parameter
    time: float  # of forward, backward passes and update, over that of ADAM


def measure_costs(images: Images, rates: dict[str, float], rounds: int) -> dict[str, Cost]:
    """Train with every strategy in turns, on the same batches, each at its learning rate, and time the turns.

    A strategy's time is the median over the rounds, but for a first one, of its turn's time over ADAM's in that round.
    """
    trainings = {name: Training(images, BY_NAME[name], lr, seed=0) for name, lr in rates.items()}
    turns = {
        name: (training, endless_batches(training.training, training.generator)) for name, training in trainings.items()
    }
    seconds = [{name: time_turn(*turn) for name, turn in turns.items()} for _ in range(rounds + 1)][1:]
    times = {name: statistics.median(turn[name] / turn[ADAM.name] for turn in seconds) for name in rates}
    return {name: make_cost(training.optimizer, times[name]) for name, training in trainings.items()}


def time_turn(training: Training, batches: Iterator[torch.Tensor]) -> float:
    """Return the seconds that a turn takes."""
    start = time.perf_counter()
    for batch in itertools.islice(batches, STEPS):
        training.step(batch)
    return time.perf_counter() - start


def make_cost(optimizer: torch.optim.Optimizer, relative_time: float) -> Cost:
    """Return the cost of an optimizer that has made a step."""
    apart = isinstance(optimizer, TermOptimizer) and not getattr(optimizer, "takes_one_pass", False)
    passes = len(TERMS) if apart else 1
    params = [p for group in optimizer.param_groups for p in group["params"]]
    elements = sum(p.numel() for p in params)
    state_bytes = sum(tensor.nbytes for p in params for tensor in iter_tensors(optimizer.state[p]))
    return Cost(passes, round(state_bytes / elements), passes * params[0].element_size(), relative_time)
