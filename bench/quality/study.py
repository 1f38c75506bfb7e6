"""The study: which runs there are, and what comes out of them."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from bench.quality.methods import ADAM, Method
from bench.quality.problem import EQUAL, Problem
from bench.quality.training import Job, Result, train

BY_HAND = "Adam, best weights by hand"


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    seeds: int = 5
    part: float = 1.0  # of each problem's steps
    rates: int = 4  # of each problem's learning rates: the default one, and the first of the others


QUICK = Size(seeds=1, part=0.02, rates=1)


def jobs_of(problem: Problem, methods: Sequence[Method], size: Size) -> Iterator[Job]:
    """Yield all training runs of a problem."""
    steps = max(2, round(problem.steps * size.part))
    others = [lr for lr in problem.rates if lr != problem.default_lr]
    rates = sorted([problem.default_lr, *others[: size.rates - 1]])
    kinds = [
        (weighting, method, order)
        for method in methods
        for weighting in ([EQUAL] if method.equal_weights else problem.weightings)
        for order in (problem.orders if method.sees_order else [""])
    ]
    kinds += [(weighting, ADAM, "") for weighting in problem.by_hand if ADAM in methods]
    for seed in range(size.seeds):
        for weighting, method, order in kinds:
            for lr in rates:
                yield Job(problem.name, weighting.name, method.name, order, lr, seed, steps)


def run_all(jobs: Iterable[Job]) -> list[Result]:
    """Train all, in processes of one thread: tensors this small only lose time to more threads."""
    distinct = list(dict.fromkeys(jobs))
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    with ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,)) as pool:
        return list(tqdm(pool.map(train, distinct), total=len(distinct), unit="run", smoothing=0.02))


@dataclass(frozen=True)
class Cell:
    """The runs from all seeds of one method on one problem, at one learning rate."""

    problem: Problem
    weighting: str
    method: str  # with the order of terms where it sees that
    lr: float
    scores: tuple[float, ...]  # of each seed
    validation: tuple[float, ...]  # by which it is chosen; the scores themselves where there is no split
    diverged: int

    @property
    def merit(self) -> float:
        """Return what is larger for a better learning rate, by the data that choose it."""
        middle = float(np.median(self.validation) if self.problem.spans_decades else np.mean(self.validation))
        return middle if self.problem.higher_is_better else -middle

    @property
    def gains(self) -> list[float]:
        """Return the scores so that more is better and differences count: errors over decades as -log10."""
        scores = np.array(self.scores)
        if self.problem.spans_decades:
            return (-np.log10(scores)).tolist()
        return (scores if self.problem.higher_is_better else -scores).tolist()


class Outcome:
    """The cells of one problem."""

    def __init__(self, problem: Problem, results: Iterable[Result]) -> None:
        self.problem = problem
        by_kind: dict[tuple[str, str, float], list[Result]] = {}
        for r in results:
            if r.job.problem == problem.name:
                method = ", ".join(filter(None, [r.job.method, r.job.order]))
                by_kind.setdefault((r.job.weighting, method, r.job.lr), []).append(r)
        self.cells = [self._cell(*kind, of_seeds) for kind, of_seeds in by_kind.items()]

    def _cell(self, weighting: str, method: str, lr: float, results: list[Result]) -> Cell:
        scores = tuple(r.score for r in results)
        validation = tuple(r.score if r.validation is None else r.validation for r in results)
        return Cell(self.problem, weighting, method, lr, scores, validation, sum(r.diverged for r in results))

    def best(self, method: str, weightings: Iterable[str], lr: float | None) -> Cell | None:
        """Return the method's best cell on these weights: at ``lr``, or at the best learning rate if that is None."""
        names = set(weightings)
        fitting = [c for c in self.cells if c.method == method and c.weighting in names and lr in (None, c.lr)]
        return max(fitting, key=lambda cell: cell.merit, default=None)
