"""Report the study: a table and a verdict for each problem."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bench.demo.report import compare, standard_error, std
from bench.quality.methods import ADAM, ADAM_EQUAL, BALANCED, INITIAL, METHODS, PUBLISHED, Method
from bench.quality.problem import EQUAL, Problem
from bench.quality.study import BY_HAND, Cell, Outcome

Budgets = tuple[float | None, ...]  # learning rates, None for the best


def columns(problem: Problem) -> list[str]:
    """Return the names of the methods, in the table's order, with the order of terms where they see it."""
    names = [
        f"{method.name}, {order}" if order else method.name
        for method in METHODS
        for order in (problem.orders if method.sees_order else [""])
    ]
    if problem.by_hand:
        names.insert(1, BY_HAND)
    return names


def find(outcome: Outcome, column: str, weighting: str, lr: float | None) -> Cell | None:
    """Return what stands in a column of the row of some weights and a learning rate."""
    if column == BY_HAND:
        return outcome.best(ADAM.name, [w.name for w in outcome.problem.by_hand], lr)
    return outcome.best(column, [EQUAL.name if column == ADAM_EQUAL.name else weighting], lr)


def rows(outcome: Outcome) -> Iterator[tuple[str, float | None, dict[str, Cell]]]:
    """Yield weights, learning rate (None for the best) and cells of each row of the table."""
    problem = outcome.problem
    for weighting in problem.weightings:
        for lr in (problem.default_lr, None):
            cells = {column: find(outcome, column, weighting.name, lr) for column in columns(problem)}
            yield weighting.name, lr, {column: cell for column, cell in cells.items() if cell}


def table(outcome: Outcome) -> list[list[str]]:
    """Return header and rows."""
    lines = list(rows(outcome))
    present = [column for column in columns(outcome.problem) if any(column in cells for _, _, cells in lines)]
    header = ["weights", "lr", *present]
    return [header] + [
        [weighting, "best" if lr is None else f"{lr:g}", *(format_cell(cells.get(c), lr is None) for c in present)]
        for weighting, lr, cells in lines
    ]


def format_cell(cell: Cell | None, names_lr: bool) -> str:
    """Format the scores of a cell: mean and standard deviation, or median and range where they span decades."""
    if cell is None:
        return ""
    scores = np.array(cell.scores) * (100 if cell.problem.percent else 1)
    if cell.problem.spans_decades:
        text = f"{np.median(scores):.2g} [{scores.min():.2g}, {scores.max():.2g}]"
    else:
        text = with_deviation(scores.mean(), std(scores.tolist()))
    notes = [f"lr {cell.lr:g}"] if names_lr else []
    notes += [f"diverged: {cell.diverged}"] if cell.diverged else []
    return f"{text} ({', '.join(notes)})" if notes else text


def with_deviation(mean: float, deviation: float, sign: str = "") -> str:
    """Format a mean and the standard deviation, where there is one."""
    return f"{mean:{sign}.1f}" if math.isnan(deviation) else f"{mean:{sign}.1f} ± {deviation:.1f}"


def summary(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Return header and a row for each problem: each method at the weights that are worst for it, at the best lr."""
    names = [(ADAM_EQUAL, ""), (ADAM, ", bad weights"), (INITIAL, ""), (PUBLISHED, ""), (BALANCED, "")]
    header = ["problem", "score", "Adam, good weights", *(method.name + how for method, how in names[1:])]
    rows = [header]
    for outcome in outcomes:
        problem = outcome.problem
        score = f"{problem.score}, {'more' if problem.higher_is_better else 'less'} is better"
        good = [find(outcome, name, EQUAL.name, None) for name in (BY_HAND, ADAM_EQUAL.name)]
        cells = [next(filter(None, good), None), *(worst(outcome, method) for method, _ in names[1:])]
        rows.append([problem.name, score, *(format_cell(cell, names_lr=False) for cell in cells)])
    return rows


def worst(outcome: Outcome, method: Method) -> Cell | None:
    """Return a method's cell, at the best lr, on the weights and in the order of terms that are worst for it."""
    names = [f"{method.name}, {order}" for order in outcome.problem.orders] if method.sees_order else [method.name]
    cells = [outcome.best(name, [w.name], None) for name in names for w in outcome.problem.weightings]
    middle = np.median if outcome.problem.spans_decades else np.mean
    return min(filter(None, cells), key=lambda cell: float(middle(cell.gains)), default=None)


def summary_note(outcomes: Sequence[Outcome]) -> str:
    """Explain the summary."""
    seeds = len(outcomes[0].cells[0].scores)
    return (
        f"Seeds: {seeds}. Mean ± standard deviation, or median [range] where errors span decades. Each method but the "
        "first is shown at the weights that are worst for it, of those tried, MTAdam also in the worst order of the "
        "terms; all are at their best learning rate of four. Good weights are all 1, or for the PINNs the best that a "
        "search by hand found."
    )


def note(outcome: Outcome) -> str:
    """Explain the table."""
    problem = outcome.problem
    seeds = len(outcome.cells[0].scores)
    rates = ", ".join(f"{lr:g}" for lr in sorted({cell.lr for cell in outcome.cells}))
    better = "more is better" if problem.higher_is_better else "less is better"
    spread = "median [range]" if problem.spans_decades else "mean ± standard deviation"
    has_split = any(cell.scores != cell.validation for cell in outcome.cells)
    chosen = "on validation data" if has_split else "on the score itself, for there is no other data"
    parts = [
        f"{problem.score[0].upper()}{problem.score[1:]}, {better}: {spread}, seeds: {seeds}.",
        f"The best lr is of {rates}, chosen for each method {chosen}.",
    ]
    if problem.by_hand:
        parts.append(f"Weights by hand: the best of {', '.join(w.name for w in problem.by_hand)}, chosen likewise.")
    count = sum(cell.diverged for cell in outcome.cells)
    if count:
        parts.append(f"Of all runs, {count} diverged and count as {problem.worst:g}.")
    return " ".join(parts)


def verdict(outcome: Outcome) -> list[str]:
    """Say for each row how the recommended setting compares with the other methods, paired by seed."""
    lines = []
    for weighting, lr, cells in rows(outcome):
        ours = cells.get(BALANCED.name)
        if ours is None or len(cells) == 1:
            continue
        verbs: dict[str, list[str]] = {"beats": [], "cannot be told from": [], "falls short of": []}
        for name, other in cells.items():
            if other is not ours:
                verbs[compare(ours.gains, other.gains)].append(f"{name} ({difference(ours, other)})")
        parts = [f"{verb} {', '.join(others)}" for verb, others in verbs.items() if others]
        if ADAM_EQUAL.name in cells:
            parts.append(f"is {within_deviation(ours, cells[ADAM_EQUAL.name])} of {ADAM_EQUAL.name}")
        where = "the best lr" if lr is None else f"lr {lr:g}"
        lines.append(f"Weights {weighting}, at {where}: {BALANCED.name} {'; '.join(parts)}.")
    return lines


def difference(ours: Cell, other: Cell) -> str:
    """Format how much better our scores are: the mean difference with its standard error, or the ratio of errors."""
    gain = float(np.mean(ours.gains) - np.mean(other.gains))
    if ours.problem.spans_decades:
        return f"errors {10 ** abs(gain):.2g} times as {'small' if gain > 0 else 'large'}"
    unit = 100 if ours.problem.percent else 1
    return with_deviation(unit * gain, unit * standard_error(ours.gains, other.gains), sign="+")


def within_deviation(ours: Cell, other: Cell) -> str:
    """Return whether our mean is at most one standard deviation of the other's runs worse than theirs."""
    is_within = np.mean(ours.gains) >= np.mean(other.gains) - std(other.gains)
    return f"{'' if is_within else 'not '}within one standard deviation"
