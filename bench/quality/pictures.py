"""The study's pictures: every run as a dot."""

from pathlib import Path

import numpy as np

from bench.demo.pictures import stretch_accuracies
from bench.quality.report import columns, rows
from bench.quality.study import Outcome
from bench.report.style import BLUE, VERMILLION, Look, apply_style, make_figure, save

AT_DEFAULT, AT_BEST = Look(VERMILLION, "o"), Look(BLUE, "s")  # learning rate
PANELS_A_ROW = 2


def draw_runs(outcome: Outcome, path: Path) -> None:
    """Draw the score of each run at the default and at the best learning rate, a panel for each kind of weights."""
    problem = outcome.problem
    names = [c for c in columns(problem) if any(c in cells for _, _, cells in rows(outcome))]
    panels = list(dict.fromkeys(weighting for weighting, _, _ in rows(outcome)))
    lines = -(-len(panels) // PANELS_A_ROW)
    figure = make_figure(11, lines * (0.42 * len(names) + 0.6) + 1.1)
    grid = figure.subplots(lines, PANELS_A_ROW, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    all_axes = dict(zip(panels, grid.flat, strict=False))
    lowest = 100.0
    for weighting, lr, cells in rows(outcome):
        axes, is_best = all_axes[weighting], lr is None
        look, shift = (AT_BEST, 0.17) if is_best else (AT_DEFAULT, -0.17)
        for name, cell in cells.items():
            scores = np.array(cell.scores) * (100 if problem.percent else 1)
            row = names.index(name) + shift
            axes.plot(scores, np.full(len(scores), row), look.marker, color=look.color, alpha=0.5, markersize=6)
            middle = np.median(scores) if problem.spans_decades else scores.mean()
            axes.plot([middle], [row], "|", color=look.color, markersize=14, markeredgewidth=2.4)
            lowest = min(lowest, scores.min())
        axes.plot([], [], look.marker, color=look.color, label="best lr" if is_best else f"lr {lr:g}")
    for weighting, axes in all_axes.items():
        axes.set_title(f"weights: {weighting}")
        apply_style(axes)
        axes.tick_params(labelbottom=True)
        axes.grid(axis="y", visible=False)
        if problem.percent:
            stretch_accuracies(axes, lowest, along="x")
        elif problem.spans_decades:
            axes.set_xscale("log")
    first = all_axes[panels[0]]
    first.set_yticks(range(len(names)), names)
    first.set_ylim(len(names) - 0.5, -0.5)
    scale = " (log scale)" if problem.spans_decades else " (stretched near 100)" if problem.percent else ""
    better = "right" if problem.higher_is_better else "left"
    middle_word = "median" if problem.spans_decades else "mean"
    text = f"{problem.score}{scale}, better to the {better}:\na dot a seed, a bar their {middle_word}"
    figure.supxlabel(text, fontsize="medium")
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    save(figure, path)
