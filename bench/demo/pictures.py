"""The demo's pictures."""

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.demo.report import Choice, Runs
from bench.demo.strategies import ADAM_BALANCED, BY_NAME
from mtadam_fused.plots import draw_heat_map

BALANCED = ADAM_BALANCED.weights

# Okabe and Ito's colors, which color-blind readers tell apart; line styles tell them apart in gray.
COLORS = ("#000000", "#D55E00", "#CC79A7", "#0072B2", "#009E73")
LINES = ("--", "-.", ":", (0, (5, 1, 1, 1)), "-")


def draw_curves(runs: Runs, choices: list[Choice], path: Path) -> None:
    """Draw test accuracy against epoch, for each kind of weights: means, with standard deviations.

    Args:
        choices: the learning rates chosen for the last epoch.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    kinds = list(dict.fromkeys(BY_NAME[c.strategy].weights for c in choices[1:]))
    all_axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    lowest = min(
        draw_curves_on(axes, runs, [c for c in choices if BY_NAME[c.strategy].weights in (BALANCED, kind)])
        for axes, kind in zip(all_axes, kinds, strict=True)
    )
    for axes, kind in zip(all_axes, kinds, strict=True):
        stretch_accuracies(axes, lowest)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("epoch", fontsize=12)
        axes.set_title(f"weights {kind}", fontsize=12)
        axes.tick_params(labelsize=11)
        axes.grid(color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="best", fontsize=11, framealpha=0.9, edgecolor="white")
    all_axes[0].set_ylabel("test accuracy, %", fontsize=12)
    figure.savefig(path, dpi=150)


def draw_curves_on(axes: Axes, runs: Runs, choices: list[Choice]) -> float:
    """Draw a line and a band for each choice. Return the lowest value."""
    lowest = 100.0
    for choice, color, line in zip(choices, COLORS, LINES, strict=True):
        test = 100 * np.array([run.test for run in runs[choice.strategy, choice.lr]])  # [seeds, epochs]
        epochs = np.arange(1, test.shape[1] + 1)
        mean, deviation = test.mean(axis=0), test.std(axis=0, ddof=1) if len(test) > 1 else np.zeros(test.shape[1])
        low, high = np.maximum(mean - deviation, 0), np.minimum(mean + deviation, 100)
        name = choice.strategy if choice is choices[0] else BY_NAME[choice.strategy].method
        axes.plot(epochs, mean, linestyle=line, color=color, linewidth=2.2, label=f"{name} (lr {choice.lr:g})")
        axes.fill_between(epochs, low, high, color=color, alpha=0.13, linewidth=0)
        lowest = min(lowest, low.min())
    return lowest


def stretch_accuracies(axes: Axes, lowest: float, along: Literal["x", "y"] = "y") -> None:
    """Give the percentages near 100, where good methods differ, more room than those near ``lowest``."""
    functions = (lambda a: -np.log(101 - a), lambda y: 101 - np.exp(-y))  # 100 stays finite
    ticks = [0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 100]
    if along == "x":
        axes.set_xscale("function", functions=functions)
        axes.set(xticks=ticks, xlim=(0.9 * lowest, 100))
    else:
        axes.set_yscale("function", functions=functions)
        axes.set(yticks=ticks, ylim=(0.9 * lowest, 100))


def draw_scales(scales: dict[str, list[float]], weights: list[float], path: Path) -> None:
    """Draw the scale applied to each term's gradient in the last step, parameter by parameter."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    columns = [f"{c}\nw = {w:.2g}" for c, w in enumerate(weights)]
    draw_heat_map(axes, np.array(list(scales.values())), list(scales), columns)
    axes.set_xlabel("class, and weight w of its loss term", fontsize=12)
    axes.set_title("What BalancedAdam's last step multiplied each term's gradient by", fontsize=12)
    figure.savefig(path, dpi=150)


def draw_strategies(choices: list[Choice], path: Path) -> None:
    """Draw the test accuracy of each strategy at each budget of epochs: mean as a dot, standard deviation as a bar."""
    budgets = list(dict.fromkeys(c.epochs for c in choices))
    names = list(dict.fromkeys(c.strategy for c in choices))
    figure = Figure(figsize=(9, 0.36 * len(names) + 1.3), layout="constrained")
    axes = figure.subplots()
    lowest = 100.0
    for i, (epochs, color, marker) in enumerate(zip(budgets, COLORS[1::2], "os", strict=False)):
        test = 100 * np.array([c.test for c in choices if c.epochs == epochs])  # [strategies, seeds]
        mean, deviation = test.mean(axis=1), test.std(axis=1, ddof=1) if test.shape[1] > 1 else np.zeros(len(test))
        bars = np.stack([np.minimum(deviation, mean), np.minimum(deviation, 100 - mean)])
        rows = np.arange(len(names)) + 0.24 * (i - (len(budgets) - 1) / 2)
        axes.errorbar(mean, rows, xerr=bars, fmt=marker, color=color, capsize=3, label=f"at epoch {epochs}")
        lowest = min(lowest, (mean - bars[0]).min())
    stretch_accuracies(axes, lowest, along="x")
    axes.set_yticks(range(len(names)), names, fontsize=11)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, % (mean and standard deviation between seeds)", fontsize=12)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=len(budgets), fontsize=12, frameon=False)
    figure.savefig(path, dpi=150)
