"""Report the demo's runs: chosen learning rates, tables and verdict."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from bench.demo.cost import Cost
from bench.demo.strategies import ADAM, ADAM_BALANCED, DECADES, PAPER
from bench.demo.training import Run

Runs = dict[tuple[str, float], list[Run]]  # by a strategy's name and a learning rate: one run a seed

NOTE = "Accuracies in percent: on test images, mean ± standard deviation; on validation images, mean at each lr."
CHANCE = 0.05  # a mean difference that chance makes more rarely than this counts as one: Student's test, paired by seed


@dataclass(frozen=True)
class Choice:
    """A strategy at the learning rate that is best on validation after so many epochs."""

    strategy: str
    epochs: int
    lr: float
    validation: dict[float, float]  # mean accuracy by learning rate
    test: list[float]  # accuracy of each seed at the chosen rate

    @property
    def at_edge(self) -> bool:
        """Return whether the chosen rate is the grid's first or last, so that a better one may lie beyond."""
        return self.lr in (min(self.validation), max(self.validation))


def choose(runs: Runs, strategy: str, epochs: int) -> Choice:
    """Choose the learning rate. The test accuracies play no part in it."""
    tried = {lr: of_seeds for (of, lr), of_seeds in runs.items() if of == strategy}
    validation = {lr: float(np.mean([run.validation[epochs - 1] for run in of])) for lr, of in tried.items()}
    lr = max(validation, key=lambda rate: validation[rate])
    return Choice(strategy, epochs, lr, validation, [run.test[epochs - 1] for run in tried[lr]])


def std(values: list[float]) -> float:
    """Return the sample standard deviation, NaN for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def with_deviation(mean: str, deviation: float) -> str:
    """Return ``mean``, in percent, with the standard deviation between seeds where there is one."""
    return mean if math.isnan(deviation) else f"{mean} ± {100 * deviation:.1f}"


def read_choices(results: dict[str, Any]) -> list[Choice]:
    """Return the choices in an experiment's JSON."""
    found = [Choice(**of) for of in results["choices"]]
    return [replace(c, validation={float(lr): value for lr, value in c.validation.items()}) for c in found]


def read_costs(results: dict[str, Any]) -> dict[str, Cost]:
    """Return the costs in an experiment's JSON."""
    return {name: Cost(**of) for name, of in results["costs"].items()}


# -- tables and verdict ------------------------------------------------------------------------------------------------


def methods_table(choices: list[Choice]) -> list[list[str]]:
    """Return header and rows, per epochs and method. NOTE explains them."""
    rates = list(choices[0].validation)
    header = ["epochs", "method", "lr", "test accuracy, %", *(f"val. at {rate:g}" for rate in rates)]
    return [header] + [
        [
            str(c.epochs),
            c.strategy,
            f"{c.lr:g}",
            with_deviation(f"{100 * np.mean(c.test):.1f}", std(c.test)),
            *(f"{100 * c.validation[rate]:.1f}" for rate in rates),
        ]
        for c in choices
    ]


def strategies_table(choices: list[Choice], costs: dict[str, Cost]) -> list[list[str]]:
    """Return header and a row per strategy: its cost and accuracies. :func:`strategies_note` explains them."""
    budgets = dict.fromkeys(c.epochs for c in choices)
    header = ["strategy", "backward passes", "state + gradients", "time of a step", "lr"]
    rows = [[*header, *(f"accuracy at epoch {epochs}" for epochs in budgets)]]
    for name, cost in costs.items():
        own = [c for c in choices if c.strategy == name]
        costing = [str(cost.passes), f"{cost.state_bytes} + {cost.gradient_bytes} B", f"{cost.time:.1f}"]
        accuracies = [with_deviation(f"{100 * np.mean(c.test):.1f}", std(c.test)) for c in own]
        rows.append([name, *costing, ", ".join(f"{c.lr:g}" for c in own), *accuracies])
    return rows


def strategies_note(choices: list[Choice]) -> str:
    """Explain the table of the strategies."""
    rates = ", ".join(f"{rate:g}" for rate in choices[0].validation)
    return (
        f"Weights drawn from {PAPER}, but for the first. Accuracies in percent on test images: mean ± standard "
        f"deviation, seeds: {len(choices[0].test)}, each at the lr of {rates} that is best on validation images after "
        "so many epochs. Bytes are per parameter, for ten terms. Times are of forward pass, backward passes and "
        f"update, over those of {ADAM.name}: medians of turns on one thread, on a network so small that they are "
        "mostly overhead. EqualWeights is left out: it is Adam but for a factor, which Adam all but cancels."
    )


def as_text(cells: list[list[str]]) -> str:
    """Format the table in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(cells: list[list[str]]) -> str:
    """Format the table in Markdown."""
    rule = ["---"] * len(cells[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def verdict(choices: list[Choice]) -> str:
    """Say for each kind of bad weights, after all epochs, how BalancedAdam compares with the others."""
    last = {c.strategy: c for c in choices if c.epochs == choices[-1].epochs}
    seeds = len(choices[0].test)
    parts = []
    for weights in (DECADES, PAPER):
        others = [last[f"{method}, {weights}"] for method in ("Adam", "MTAdam", "InitialLoss")]
        parts.append(describe_rivals(last[f"BalancedAdam, {weights}"], [last[ADAM_BALANCED.name], *others]))
    return (
        f"On {seeds} seed{'s' if seeds > 1 else ''}, at each method's best learning rate after {choices[-1].epochs} "
        f"epochs: {'; '.join(parts)}."
    )


def describe_rivals(own: Choice, others: list[Choice]) -> str:
    """Say how one strategy compares with others, paired by seed."""
    found = [f"{compare(own.test, c.test)} {c.strategy} ({difference(own.test, c.test)})" for c in others]
    return f"{own.strategy} {', '.join(found[:-1])} and {found[-1]}"


def in_short(choices: list[Choice], seconds: float, cpu_seconds: float) -> str:
    """Say in two sentences what came out on the worst weights, and how long all took, for README."""
    epochs = choices[-1].epochs
    last = {c.strategy: c for c in choices if c.epochs == epochs}

    def accuracy(name: str) -> str:
        test = last[name].test
        return f"{with_deviation(f'{100 * np.mean(test):.1f}', std(test))} %"

    adam, balanced = accuracy(f"Adam, {DECADES}"), accuracy(f"BalancedAdam, {DECADES}")
    return (
        f"After {epochs} epochs with weights spread over six decades, Adam classifies {adam} of the test images, and "
        f"BalancedAdam {balanced}. Adam with the right weights classifies {accuracy(ADAM_BALANCED.name)}.\n"
        f"The recorded run took {seconds:.0f} seconds, and {cpu_seconds:.0f} of processor time."
    )


def standard_error(ours: list[float], theirs: list[float]) -> float:
    """Return the standard error of the mean difference, paired by seed."""
    return std([a - b for a, b in zip(ours, theirs, strict=True)]) / math.sqrt(len(ours))


def compare(ours: list[float], theirs: list[float]) -> str:
    """Return the verb of a comparison by mean accuracy. With one seed any difference counts."""
    gain = float(np.mean(ours) - np.mean(theirs))
    errors = float(student.isf(CHANCE / 2, len(ours) - 1)) if len(ours) > 1 else 0.0
    if gain == 0 or abs(gain) <= errors * standard_error(ours, theirs):
        return "cannot be told from"
    return "beats" if gain > 0 else "falls short of"


def difference(ours: list[float], theirs: list[float]) -> str:
    """Return the mean difference in percentage points, with its standard error if there are several seeds."""
    gain = 100 * (np.mean(ours) - np.mean(theirs))
    return f"{with_deviation(f'{gain:+.1f}', standard_error(ours, theirs))} points"


def edge_warning(choices: list[Choice]) -> str:
    """Name the choices that a wider grid might improve. Empty if none."""
    at_edge = [f"{c.strategy} after {c.epochs} ({c.lr:g})" for c in choices if c.at_edge]
    return f"Best learning rates at the edge of the grid: {'; '.join(at_edge)}.\n" if at_edge else ""
