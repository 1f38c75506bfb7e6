"""One training run: of one problem, by one method, on some weights, at one learning rate, from one seed."""

import math
from dataclasses import dataclass

import torch

from bench.quality.methods import BY_NAME
from bench.quality.problem import Problem, Training
from bench.quality.problems import PROBLEMS


@dataclass(frozen=True)
class Job:
    """One training run, in plain values that can be sent to another process."""

    problem: str
    weighting: str
    method: str
    order: str  # "" but for a method that sees it
    lr: float
    seed: int
    steps: int


@dataclass(frozen=True)
class Result:
    """The scores of one training run."""

    job: Job
    score: float
    validation: float | None
    diverged: bool  # if so, the scores are the problem's worst


def train(job: Job) -> Result:
    """Train from the beginning."""
    problem = PROBLEMS[job.problem]
    training = problem.start(job.seed)
    weights = problem.draw_weights(job.weighting, job.seed)
    optimizer = BY_NAME[job.method].make(list(training.network.parameters()), job.lr, job.seed)
    order = problem.orders.get(job.order, ())
    for step in range(job.steps):
        if problem.cosine:
            set_lr(optimizer, job.lr * (1 + math.cos(math.pi * step / job.steps)) / 2)
        losses = training.losses()
        weighted = {term: weights.get(term, 1.0) * losses[term] for term in order or losses if term in losses}
        optimizer.zero_grad()
        optimizer.backward(weighted)
        optimizer.step()
    return judge(job, problem, training)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def judge(job: Job, problem: Problem, training: Training) -> Result:
    """Return the scores of a trained network."""
    score, validation = training.score(), training.validation and training.validation()
    if math.isfinite(score) and (validation is None or math.isfinite(validation)):
        return Result(job, score, validation, diverged=False)
    return Result(job, problem.worst, None if validation is None else problem.worst, diverged=True)
