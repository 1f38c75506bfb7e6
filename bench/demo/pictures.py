"""The demo's pictures."""

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.demo.report import Choice
from bench.demo.strategies import ADAM_BALANCED, BY_NAME
from bench.report.style import BLACK, BLUE, GREEN, PURPLE, VERMILLION, Look, apply_style, make_figure, save
from bench.report.tables import format_number
from mtadam_fused.plots import draw_heat_map

BALANCED = ADAM_BALANCED.weights
LOOKS = {
    ADAM_BALANCED.name: Look(BLACK, "^", "--"),
    "Adam": Look(VERMILLION, "D", "-."),
    "InitialLoss": Look(PURPLE, "v", ":"),
    "MTAdam": Look(BLUE, "o", (0, (5, 1, 1, 1))),
    "BalancedAdam": Look(GREEN, "s"),
}
ACCURACY = "test accuracy, % (stretched near 100)"

Curves = dict[str, list[list[float]]]  # by a strategy's name: the test accuracy of each seed after each epoch


def draw_curves(curves: Curves, choices: list[Choice], path: Path) -> None:
    """Draw test accuracy against epoch, for each kind of weights: means, with standard deviations.

    Args:
        curves: at the learning rates of ``choices``.
        choices: those for the last epoch.
    """
    figure = make_figure(12, 5.4)
    kinds = list(dict.fromkeys(BY_NAME[c.strategy].weights for c in choices[1:]))
    all_axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    lowest = min(
        draw_curves_on(axes, curves, [c for c in choices if BY_NAME[c.strategy].weights in (BALANCED, kind)])
        for axes, kind in zip(all_axes, kinds, strict=True)
    )
    for axes, kind in zip(all_axes, kinds, strict=True):
        stretch_accuracies(axes, lowest)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("epoch")
        axes.set_title(f"weights {kind}")
        apply_style(axes)
        axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="white")
    all_axes[0].set_ylabel(ACCURACY)
    save(figure, path)


def draw_curves_on(axes: Axes, curves: Curves, choices: list[Choice]) -> float:
    """Draw a line and a band for each choice. Return the lowest value."""
    lowest = 100.0
    for choice in choices:
        test = 100 * np.array(curves[choice.strategy])  # [seeds, epochs]
        epochs = np.arange(1, test.shape[1] + 1)
        mean, deviation = test.mean(axis=0), test.std(axis=0, ddof=1) if len(test) > 1 else np.zeros(test.shape[1])
        low, high = np.maximum(mean - deviation, 0), np.minimum(mean + deviation, 100)
        name = choice.strategy if choice is choices[0] else BY_NAME[choice.strategy].method
        look = LOOKS[name]
        axes.plot(epochs, mean, markevery=4, label=f"{name} (lr {choice.lr:g})", **look.of_line())
        axes.fill_between(epochs, low, high, color=look.color, alpha=0.13, linewidth=0)
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
    figure = make_figure(11, 5)
    axes = figure.subplots()
    columns = [f"{c}\n{format_number(w)}" for c, w in enumerate(weights)]
    draw_heat_map(axes, np.array(list(scales.values())), list(scales), columns)
    axes.set_xlabel("class, and below it the weight of its loss term")
    axes.set_title("What BalancedAdam's last step multiplied each term's gradient by (log scale)")
    save(figure, path)


def draw_strategies(choices: list[Choice], path: Path) -> None:
    """Draw the test accuracy of each strategy at each budget of epochs: mean as a dot, standard deviation as a bar."""
    budgets = list(dict.fromkeys(c.epochs for c in choices))
    names = list(dict.fromkeys(c.strategy for c in choices))
    figure = make_figure(10, 0.36 * len(names) + 1.8)
    axes = figure.subplots()
    lowest = 100.0
    for i, (epochs, look) in enumerate(zip(budgets, (Look(VERMILLION, "o"), Look(BLUE, "s")), strict=False)):
        test = 100 * np.array([c.test for c in choices if c.epochs == epochs])  # [strategies, seeds]
        mean, deviation = test.mean(axis=1), test.std(axis=1, ddof=1) if test.shape[1] > 1 else np.zeros(len(test))
        bars = np.stack([np.minimum(deviation, mean), np.minimum(deviation, 100 - mean)])
        rows = np.arange(len(names)) + 0.24 * (i - (len(budgets) - 1) / 2)
        axes.errorbar(mean, rows, xerr=bars, fmt=look.marker, color=look.color, capsize=3, label=f"at epoch {epochs}")
        lowest = min(lowest, (mean - bars[0]).min())
    stretch_accuracies(axes, lowest, along="x")
    shown = [name if BY_NAME[name].weights == BALANCED else BY_NAME[name].method for name in names]
    axes.set_yticks(range(len(names)), shown)
    axes.set_ylim(len(names) - 0.3, -0.7)
    axes.set_xlabel(f"{ACCURACY}, better to the right:\nmean and standard deviation between seeds")
    apply_style(axes)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper right", ncols=len(budgets))
    save(figure, path)
