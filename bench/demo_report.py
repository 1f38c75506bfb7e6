"""What the demo makes of its runs: chosen learning rates, table, verdict and pictures."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_training import METHODS, Method, Run
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Runs = dict[tuple[Method, float], list[Run]]  # by method and learning rate: one run a seed

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73")
LINES = ("--", "-.", "-")
NOTE = "Accuracies in per cent: on test images, mean ± standard deviation; on validation images, mean at each lr."
SURE = 2.0  # a mean difference of more standard errors than this counts as one


@dataclass(frozen=True)
class Choice:
    """A method at the learning rate that is best on validation after so many epochs."""

    method: Method
    epochs: int
    lr: float
    validation: dict[float, float]  # mean accuracy by learning rate
    test: list[float]  # accuracy of each seed at the chosen rate

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the grid's first or last, so that a better one may lie beyond."""
        return self.lr in (min(self.validation), max(self.validation))


def choose(runs: Runs, method: Method, epochs: int) -> Choice:
    """Chooses the learning rate; the test accuracies play no part in it."""
    tried = {lr: of_seeds for (of, lr), of_seeds in runs.items() if of == method}
    validation = {lr: float(np.mean([run.validation[epochs - 1] for run in of])) for lr, of in tried.items()}
    lr = max(validation, key=lambda rate: validation[rate])
    return Choice(method, epochs, lr, validation, [run.test[epochs - 1] for run in tried[lr]])


def std(values: list[float]) -> float:
    """Sample standard deviation; NaN for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def with_spread(mean: str, spread: float) -> str:
    """``mean``, in per cent, with a spread between seeds where there is one."""
    return mean if math.isnan(spread) else f"{mean} ± {100 * spread:.1f}"


# -- table and verdict -------------------------------------------------------------------------------------------------


def table(choices: list[Choice]) -> list[list[str]]:
    """Header and rows, per epochs and method; NOTE says what stands in them."""
    rates = list(choices[0].validation)
    header = ["epochs", "method", "lr", "test accuracy, %", *(f"val. at {rate:g}" for rate in rates)]
    return [header] + [
        [
            str(c.epochs),
            c.method.name,
            f"{c.lr:g}",
            with_spread(f"{100 * np.mean(c.test):.1f}", std(c.test)),
            *(f"{100 * c.validation[rate]:.1f}" for rate in rates),
        ]
        for c in choices
    ]


def as_text(cells: list[list[str]]) -> str:
    """The table in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(cells: list[list[str]]) -> str:
    """The table in Markdown."""
    rule = ["---"] * len(cells[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def verdict(choices: list[Choice]) -> str:
    """Says in one sentence how MTAdam on the bad weights compares with Adam on them and on the balanced sum."""
    seeds = len(choices[0].test)
    parts = []
    for epochs in dict.fromkeys(c.epochs for c in choices):
        balanced, bad, mtadam = (c.test for c in choices if c.epochs == epochs)
        parts.append(
            f"after {epochs} epoch{'s' if epochs > 1 else ''} MTAdam {compare(mtadam, bad)} Adam on the bad weights "
            f"({difference(mtadam, bad)}) and {compare(mtadam, balanced)} Adam on the balanced sum "
            f"({difference(mtadam, balanced)})"
        )
    return f"On {seeds} seed{'s' if seeds > 1 else ''}, at each method's best learning rate, {'; '.join(parts)}."


def standard_error(ours: list[float], theirs: list[float]) -> float:
    """Of the mean difference, paired by seed."""
    return std([a - b for a, b in zip(ours, theirs, strict=True)]) / math.sqrt(len(ours))


def compare(ours: list[float], theirs: list[float]) -> str:
    """The verb of a comparison by mean accuracy; one seed says nothing about chance, so there any difference counts."""
    gain = float(np.mean(ours) - np.mean(theirs))
    if gain == 0 or abs(gain) <= SURE * standard_error(ours, theirs):
        return "cannot be told from"
    return "beats" if gain > 0 else "falls short of"


def difference(ours: list[float], theirs: list[float]) -> str:
    """The mean difference in percentage points, with its standard error where there are seeds to tell."""
    gain = 100 * (np.mean(ours) - np.mean(theirs))
    return f"{with_spread(f'{gain:+.1f}', standard_error(ours, theirs))} points"


def edge_warning(choices: list[Choice]) -> str:
    """Says which choices a wider grid might better; empty if none."""
    at_edge = [f"{c.method.name} after {c.epochs} ({c.lr:g})" for c in choices if c.at_edge]
    return f"Best learning rates at the edge of the grid: {'; '.join(at_edge)}.\n" if at_edge else ""


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw_curves(runs: Runs, choices: list[Choice], path: Path) -> None:
    """Test accuracy against epoch, at the learning rates chosen for the last: means, and bands of a deviation."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    lowest = 100.0
    for choice, colour, line in zip(choices[-len(METHODS) :], COLOURS, LINES, strict=True):
        test = 100 * np.array([run.test for run in runs[choice.method, choice.lr]])  # [seeds, epochs]
        epochs = np.arange(1, test.shape[1] + 1)
        mean, spread = test.mean(axis=0), test.std(axis=0, ddof=1) if len(test) > 1 else np.zeros(test.shape[1])
        low, high = np.maximum(mean - spread, 0), np.minimum(mean + spread, 100)
        axes.plot(epochs, mean, line, color=colour, linewidth=2.2, label=f"{choice.method.name} (lr {choice.lr:g})")
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        lowest = min(lowest, low.min())
    stretch_accuracies(axes, lowest)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epoch", fontsize=12)
    axes.set_ylabel("test accuracy, %", fontsize=12)
    axes.set_title("Mean and standard deviation between seeds", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", fontsize=12, framealpha=1, edgecolor="white")
    figure.savefig(path, dpi=150)


def stretch_accuracies(axes: Axes, lowest: float) -> None:
    """Gives the percentages near 100, where good methods differ, more room than those near ``lowest``."""
    axes.set_yscale("function", functions=(lambda a: -np.log(101 - a), lambda y: 101 - np.exp(-y)))  # 100 stays finite
    axes.set_yticks([0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 100])
    axes.set_ylim(0.9 * lowest, 100)


def draw_scales(scales: dict[str, list[float]], weights: list[float], path: Path) -> None:
    """What the last step multiplied each term's gradient by, parameter by parameter."""
    values = np.array(list(scales.values()))  # [parameters, classes]
    norm = LogNorm(values.min(), values.max())
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, norm=norm, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        ink = "black" if norm(value) > 0.5 else "white"
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=10)
    axes.set_xticks(range(len(weights)), [f"{c}\nw = {w:.3g}" for c, w in enumerate(weights)], fontsize=11)
    axes.set_yticks(range(len(scales)), list(scales), fontsize=11)
    axes.set_xlabel("class, and weight w of its loss term", fontsize=12)
    axes.set_title("What MTAdam's last step multiplied each term's gradient by", fontsize=12)
    figure.colorbar(image, pad=0.01).ax.tick_params(labelsize=11)
    figure.savefig(path, dpi=150)
