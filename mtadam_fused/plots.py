"""Pictures of what a Recorder has kept. Needs matplotlib."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from .telemetry import Row, describe

MOST_NUMBERS = 400  # in a heat map; they would not fit into more cells
TITLES = {
    "scale": "What each term's gradient was multiplied by",
    "running_norm": "Running norms of the terms' gradients",
    "cosine": "Cosines between the terms' gradients",
    "weight": "Weights of the terms",
}
SIGNED = ("cosine", "weight")  # quantities that are not drawn on a logarithmic scale


def draw_heat_map(
    axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, signed: bool = False
) -> None:
    """Draw ``values`` [rows, columns] as colors, with numbers where they fit. Cells without a value are gray.

    Args:
        axes: where to draw.
        values: positive, on a logarithmic scale, or ``signed``, between -1 and 1; else a cell has no value.
        rows: labels.
        columns: labels.
        signed: which of the two.
    """
    shown = np.ma.masked_invalid(values)
    if not signed:
        shown = np.ma.masked_less_equal(shown, 0.0)
    low, high = (-1.0, 1.0) if signed else (shown.min(), shown.max()) if shown.count() else (1.0, 10.0)
    norm = Normalize(low, high) if signed or low == high else LogNorm(low, high)
    colors = colormaps["RdBu" if signed else "cividis"].with_extremes(bad="#cccccc")
    image = axes.imshow(shown, norm=norm, cmap=colors, aspect="auto")
    for (row, column), value in np.ndenumerate(shown.filled(np.nan)) if shown.size <= MOST_NUMBERS else ():
        is_dark = abs(value) > 0.7 if signed else norm(value) <= 0.5
        if not np.isnan(value):
            ink = "white" if is_dark else "black"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=ink, fontsize=10)
    axes.set_xticks(range(len(columns)), list(columns), fontsize=11)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=11)
    axes.figure.colorbar(image, pad=0.01).ax.tick_params(labelsize=11)


def draw_row(row: Row, quantity: str, axes: Axes | None) -> Axes:
    """Draw a row as a heat map of parameters and terms; see ``Recorder.plot``."""
    reading, labels = row.readings[quantity], list(map(str, row.labels))
    values = reading.in_order(len(labels), torch.device("cpu")).double().numpy()
    axes = axes or make_axes(height=min(1.2 + 0.3 * len(labels), 40.0))
    draw_heat_map(axes, values, labels, list(map(describe, reading.keys)), signed=quantity in SIGNED)
    axes.set_title(f"{TITLES[quantity]}, step {row.step}", fontsize=12)
    return axes


def draw_rows(rows: Sequence[Row], quantity: str, axes: Axes | None) -> Axes:
    """Draw a curve over the steps for each term: median, least and largest; see ``Recorder.plot``."""
    axes = axes or make_axes(height=4.2)
    for key in rows[-1].readings[quantity].keys:
        steps, low, middle, high = zip(*(spread_of(row, quantity, key) for row in rows), strict=True)
        (line,) = axes.plot(steps, middle, label=describe(key))
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.13, linewidth=0)
    if quantity not in SIGNED:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step", fontsize=12)
    axes.set_title(TITLES[quantity], fontsize=12)
    if axes.lines:
        axes.legend(loc="best")
    return axes


def spread_of(row: Row, quantity: str, key: Any) -> tuple[int, float, float, float]:
    """Return the row's step, and the least, the median and the largest value; NaN where it has none."""
    values = row.values_of(quantity, key).double().numpy()
    values = values[np.isfinite(values)]
    low, middle, high = (values.min(), np.median(values), values.max()) if values.size else (np.nan,) * 3
    return row.step, float(low), float(middle), float(high)


def make_axes(height: float) -> Axes:
    """Make a figure with one pair of axes."""
    from matplotlib import pyplot  # which looks for a display, and is not needed where the user has axes

    return pyplot.subplots(figsize=(10, height), layout="constrained")[1]
