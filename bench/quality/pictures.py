"""The study's pictures: every run as a dot."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.demo.pictures import COLORS, stretch_accuracies
from bench.quality.report import columns, rows
from bench.quality.study import Outcome


def draw_runs(outcome: Outcome, path: Path) -> None:
    """Draw the score of each run at the default and at the best learning rate, a panel for each kind of weights."""
    problem = outcome.problem
    names = [c for c in columns(problem) if any(c in cells for _, _, cells in rows(outcome))]
    panels = list(dict.fromkeys(weighting for weighting, _, _ in rows(outcome)))
    figure = Figure(figsize=(2.5 + 3 * len(panels), 0.42 * len(names) + 1.5), layout="constrained")
    all_axes = dict(
        zip(panels, figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0], strict=True)
    )
    lowest = 100.0
    for weighting, lr, cells in rows(outcome):
        axes, is_best = all_axes[weighting], lr is None
        color, shift = (COLORS[2], 0.17) if is_best else (COLORS[1], -0.17)
        for name, cell in cells.items():
            scores = np.array(cell.scores) * (100 if problem.percent else 1)
            row = names.index(name) + shift
            axes.plot(scores, np.full(len(scores), row), "o", color=color, alpha=0.5, markersize=5)
            middle = np.median(scores) if problem.spans_decades else scores.mean()
            axes.plot([middle], [row], "|", color=color, markersize=13, markeredgewidth=2.2)
            lowest = min(lowest, scores.min())
        axes.plot([], [], "o", color=color, label="best lr" if is_best else f"lr {lr:g}")
    for weighting, axes in all_axes.items():
        axes.set_title(f"weights: {weighting}", fontsize=11)
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if problem.percent:
            stretch_accuracies(axes, lowest, along="x")
            axes.tick_params(axis="x", labelsize=8)
        elif problem.spans_decades:
            axes.set_xscale("log")
    first = all_axes[panels[0]]
    first.set_yticks(range(len(names)), names, fontsize=11)
    first.invert_yaxis()
    middle_word = "median" if problem.spans_decades else "mean"
    figure.supxlabel(f"{problem.score}: a dot a seed, a bar their {middle_word}", fontsize=11)
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=11, frameon=False)
    figure.savefig(path, dpi=150)
