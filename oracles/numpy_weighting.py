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


def imtll(losses: Array, priorities: Array, s: Array, fault: str | None = None) -> Answer:
    if fault == "a variance":
        s = -s
    of_bonus = np.ones(len(s)) if fault == "priority of the loss alone" else priorities
    rate = 0.5 if fault == "half s" else 1.0
    by_loss = priorities * np.exp(s)
    return Answer(float(np.sum(by_loss * losses - of_bonus * rate * s)), by_loss, by_loss * losses - of_bonus * rate)


def geometric(losses: Array, priorities: Array, fault: str | None = None) -> Answer:
    exponents = priorities / np.sum(priorities)
    if fault == "product":
        exponents = priorities
    total = np.prod(losses**exponents)
    if fault == "priorities as factors":
        total = np.prod(priorities * losses) ** (1 / len(losses))
    if fault == "held constant":
        return Answer(float(total), total / losses)
    return Answer(float(total), total * exponents / losses)


def stch(losses: Array, priorities: Array, mu: float, ideal: Array, fault: str | None = None) -> Answer:
    excess = priorities * (losses if fault == "no ideal" else losses - ideal)
    if fault == "maximum":
        return Answer(float(np.max(excess)), priorities * (excess == np.max(excess)))
    top = np.max(excess)
    total = top + mu * np.log(np.sum(np.exp((excess - top) / mu)))
    return Answer(float(total), (1.0 if fault == "softmax alone" else priorities) * softmax(excess / mu))


# -- weightings with a history: ``rows`` are the losses of all calls in training, NaN where a term is absent. The answer
# is that of the last call, for the terms it has.


def softmax(logits: Array) -> Array:
    shares = np.exp(logits - np.max(logits))
    return shares / np.sum(shares)


def weighted(losses: Array, priorities: Array, weights: Array) -> Answer:
    """Return the answer for the present losses; there are as many ``weights``."""
    present = ~np.isnan(losses)
    factors = priorities[present] * weights
    return Answer(float(np.sum(factors * losses[present])), factors)


def period_means(column: Array, batches: int) -> list[float]:
    present = column[~np.isnan(column)]
    return [float(np.mean(present[i : i + batches])) for i in range(0, len(present) - batches + 1, batches)]


def dwa(rows: Array, priorities: Array, batches: int, temperature: float, fault: str | None = None) -> Answer:
    present = ~np.isnan(rows[-1])
    rates = np.ones(rows.shape[1])
    for k, column in enumerate(rows.T if fault == "with the present loss" else rows[:-1].T):
        means = period_means(column, batches)
        if len(means) > 1:
            rates[k] = means[-2] / means[-1] if fault == "inverse" else means[-1] / means[-2]
    weights = softmax(rates[present] / temperature)
    return weighted(rows[-1], priorities, weights if fault == "sum of 1" else weights * np.sum(present))


def softadapt(
    rows: Array,
    priorities: Array,
    beta: float,
    batches: int,
    normalized: bool,
    loss_weighted: bool,
    fault: str | None = None,
) -> Answer:
    present = ~np.isnan(rows[-1])
    changes = np.zeros(rows.shape[1])
    for k, column in enumerate(rows[:-1].T if fault == "without the present loss" else rows.T):
        means = period_means(column, batches)
        if len(means) > 1:
            changes[k] = means[-1] / means[-2] if fault == "ratio" else means[-1] - means[-2]
    changes = changes[present]
    if normalized and fault != "not normalized":
        changes = changes / max(np.sum(np.abs(changes)), 1e-300)
    shares = softmax(beta * changes)
    if loss_weighted and fault != "not by loss":
        shares = shares * rows[-1][present]
    weights = shares / np.sum(shares)
    return weighted(rows[-1], priorities, weights * np.sum(present) if fault == "sum of K" else weights)


def relobralo(
    rows: Array, priorities: Array, alpha: float, rho: float, temperature: float, seed: int, fault: str | None = None
) -> Answer:
    number = rows.shape[1]
    weights, first, last = np.ones(number), np.full(number, np.nan), np.full(number, np.nan)
    for call, losses in enumerate(rows):
        present = ~np.isnan(losses)

        def balance(reference: Array, losses: Array = losses, present: Array = present) -> Array:
            ratios = np.where(np.isnan(reference), 1.0, losses / reference)[present]
            return np.sum(present) * softmax(ratios / temperature)

        kept = random_integers(seed, call, 1)[0] / 2**53 < rho
        if fault == "no lookback":
            kept = True
        past = weights[present] if kept else balance(last if fault == "lookback to the last" else first)
        newest = balance(first if fault == "compared with the first" else last)
        weights[present] = alpha * past + (1 - alpha) * newest
        if fault == "bounded sum":
            weights[present] /= np.sum(weights[present])
        first = np.where(np.isnan(first), losses, first)
        last = np.where(present, losses, last)
    return weighted(rows[-1], priorities, weights[~np.isnan(rows[-1])])


def random_weights(rows: Array, priorities: Array, seed: int, fault: str | None = None) -> Answer:
    present = int(np.sum(~np.isnan(rows[-1])))
    call = 0 if fault == "the same each time" else len(rows) - 1
    uniform = (np.array(random_integers(seed, call, 2 * present)) + 0.5) / 2**53
    normal = np.sqrt(-2 * np.log(uniform[:present])) * np.cos(2 * np.pi * uniform[present:])
    weights = softmax(uniform[:present] if fault == "uniform" else normal)
    return weighted(rows[-1], priorities, weights * present if fault == "sum of K" else weights)


def random_integers(seed: int, call: int, count: int) -> list[int]:
    """Return integers of 53 bits from splitmix64 of the seed, the call and the position, in Python's integers."""
    start = splitmix64(splitmix64(seed) + call)
    return [splitmix64(start + i) >> 11 for i in range(count)]


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def best_p(loss: float) -> float:
    """Return the minimum of 0.5 / p^2 * L + log(1 + p^2): p^4 = (L / 2) * (1 + p^2), a quadratic equation in p^2."""
    return float(np.sqrt(max(np.roots([1.0, -loss / 2, -loss / 2]))))
