"""The look of all pictures: colors that color-blind readers tell apart, and letters that are read at half size."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report.tables import format_number

matplotlib.rcParams.update(
    {
        "font.size": 14,
        "axes.titlesize": 14,
        "axes.labelsize": 14,
        "xtick.labelsize": 13,
        "ytick.labelsize": 13,
        "legend.fontsize": 13,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "lines.markersize": 8,
    }
)

# Okabe and Ito's colors.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#0072B2", "#D55E00", "#CC79A7"),
)
GRAY = "#555555"  # for lines that mark a value


@dataclass(frozen=True)
class Look:
    """How a line or a row of dots is drawn. Marker and dashes tell it from others without colors."""

    color: str
    marker: str
    line: Any = "-"

    def of_line(self) -> dict[str, Any]:
        """Return the arguments of ``Axes.plot``."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.line}


# For lines that have no look of their own, in order.
LOOKS = (
    Look(BLUE, "o"),
    Look(VERMILLION, "s", "--"),
    Look(GREEN, "^", "-."),
    Look(PURPLE, "D", ":"),
    Look(ORANGE, "v", (0, (5, 1, 1, 1))),
    Look(SKY, "P", (0, (1, 4))),
    Look(BLACK, "X", (0, (8, 3))),
)


def apply_style(axes: Axes) -> None:
    """Apply the style that all pictures share."""
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def use_plain_ticks(axis: Any) -> None:
    """Mark a logarithmic axis at 1, 2, 5 and so on, without exponents."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axis.set_minor_formatter(NullFormatter())


def make_figure(width: float, height: float) -> Figure:
    """Make a figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write the picture."""
    figure.savefig(path, dpi=130)
