"""An independent oracle: each weighting's total and its derivatives, by hand in NumPy float64, and faulty ones too."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Answer:
    """A total and its derivatives."""

    total: float
    by_loss: Array  # [K]
    by_learned: Array | None = None  # [K]


def divide(losses: Array, priorities: Array, divisors: Array) -> Answer:
    return Answer(float(np.sum(priorities * losses / divisors)), priorities / divisors)


def equal(losses: Array, priorities: Array, fault: str | None = None) -> Answer:
    return divide(losses, priorities, np.full(len(losses), 1.0 if fault == "sum" else float(len(losses))))


def prior(losses: Array, priorities: Array, values: Array, fault: str | None = None) -> Answer:
    return divide(losses, priorities, values / values.mean() if fault == "relative" else values)


def real_time(losses: Array, priorities: Array, fault: str | None = None) -> Answer:
    if fault == "divisor differentiated":
        return Answer(float(np.sum(priorities)), np.zeros(len(losses)))
    return divide(losses, priorities, losses)


def initial(history: list[Array], losses: Array, priorities: Array, batches: int, fault: str | None = None) -> Answer:
    """``history``: the losses of all calls in training so far, NaN where a term was absent."""
    columns = [column[~np.isnan(column)] for column in np.array(history).T]
    if fault == "last":
        return divide(losses, priorities, np.array([column[-1] for column in columns]))
    if fault == "first":
        batches = 1
    return divide(losses, priorities, np.array([column[:batches].mean() for column in columns]))


def uncertainty(losses: Array, priorities: Array, p: Array, fault: str | None = None) -> Answer:
    half = 1.0 if fault == "no half" else 0.5
    of_bonus = np.ones(len(p)) if fault == "priority of the loss alone" else priorities
    bonus, slope = np.log(1 + p**2), 2 * p / (1 + p**2)
    if fault == "log p^2":
        bonus, slope = np.log(p**2), 2 / p
    total = np.sum(priorities * half * losses / p**2 + of_bonus * bonus)
    return Answer(float(total), priorities * half / p**2, -2 * priorities * half * losses / p**3 + of_bonus * slope)


def kendall(losses: Array, priorities: Array, s: Array, kinds: list[str], fault: str | None = None) -> Answer:
    regression = np.array([kind == "regression" for kind in kinds])
    factor = np.where(regression, 0.5, 1.0)
    if fault == "kinds alike":
        factor = np.full(len(s), 0.5)
    of_bonus = np.ones(len(s)) if fault == "priority of the loss alone" else priorities
    rate = 1.0 if fault == "whole s" else 0.5
    total = np.sum(priorities * factor * np.exp(-s) * losses + of_bonus * rate * s)
    by_loss = priorities * factor * np.exp(-s)
    return Answer(float(total), by_loss, -by_loss * losses + of_bonus * rate)


def best_p(loss: float) -> float:
    """Return the minimum of 0.5 / p^2 * L + log(1 + p^2): p^4 = (L / 2) * (1 + p^2), a quadratic equation in p^2."""
    return float(np.sqrt(max(np.roots([1.0, -loss / 2, -loss / 2]))))
