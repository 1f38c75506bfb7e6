"""Pictures of the records of one run."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.harness.records import Record
from bench.report.tables import PEERS, fastest_backends, format_millions, format_number, our_records

# Okabe and Ito's colors, which color-blind readers tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")
LINES = ("-", "--", ":", "-.", (0, (1, 4)))
SHOWN = ("mnist", "resnet50", "bert_base")  # in the picture of times against K, where measured


def apply_style(axes: Axes) -> None:
    """Apply the style that all pictures share."""
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11)


def use_plain_ticks(axis: object) -> None:
    """Mark a logarithmic axis at 1, 2, 5 and so on, without exponents."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # type: ignore[attr-defined]
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))  # type: ignore[attr-defined]
    axis.set_minor_formatter(NullFormatter())  # type: ignore[attr-defined]


def float32_steps(records: Sequence[Record]) -> list[Record]:
    """Return the records of float32 steps."""
    return [record for record in records if record.group == "step" and record.dtype == "float32"]


def draw_bandwidth(records: Sequence[Record], path: Path) -> None:
    """Draw GB/s by the byte model against parameters, for each backend and K, under the copy's."""
    steps = our_records(float32_steps(records), "step", "mtadam")
    backends = list(dict.fromkeys(record.contender for record in steps))
    terms = sorted({record.terms for record in steps})
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for backend, marker, line_style in zip(backends, MARKERS, LINES, strict=False):
        for k, color in zip(terms, COLORS, strict=False):
            line = sorted((r for r in steps if (r.contender, r.terms) == (backend, k)), key=lambda r: r.parameters)
            axes.plot(
                [r.parameters for r in line],
                [r.gb_per_second or 0 for r in line],
                marker,
                linestyle=line_style,
                color=color,
                markersize=6,
                label=f"{backend.removeprefix('mtadam-')}, K = {k}",
            )
    copies = [r.gb_per_second for r in float32_steps(records) if r.contender == "copy" and r.gb_per_second]
    if copies:
        rate = median(copies)
        axes.axhline(rate, color="#555555", linestyle="--", linewidth=1.2)
        axes.annotate("a copy", (1, rate), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=11)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("parameters", fontsize=12)
    axes.set_ylabel("GB/s, of 16K + 16 bytes per parameter", fontsize=12)
    axes.set_title("Bandwidth of a step, float32", fontsize=12)
    use_plain_ticks(axes.yaxis)
    apply_style(axes)
    figure.legend(loc="outside right upper", fontsize=11, frameon=False)
    figure.savefig(path, dpi=120)


def draw_peers(records: Sequence[Record], path: Path) -> None:
    """Draw how many times as fast as each peer the fastest backend is, with the turns' quartiles."""
    best = sorted(fastest_backends(our_records(float32_steps(records), "step", "mtadam")), key=lambda r: r.parameters)
    terms = sorted({record.terms for record in best})
    figure = Figure(figsize=(12, 3.2 * len(terms)), layout="constrained")
    for axes, k in zip(figure.subplots(len(terms), squeeze=False)[:, 0], terms, strict=True):
        rows = [record for record in best if record.terms == k]
        for number_of_peer, (name, label) in enumerate(PEERS.items()):
            spots = [i for i, r in enumerate(rows) if name in r.faster_than]
            found = [rows[i].faster_than[name] for i in spots]
            axes.bar(
                [i + (number_of_peer - 1.5) * 0.2 for i in spots],
                [ratio.median - 1 for ratio in found],
                0.18,
                bottom=1,
                yerr=[[r.median - r.low for r in found], [r.high - r.median for r in found]],
                color=COLORS[number_of_peer],
                error_kw={"elinewidth": 0.9},
                label=label,
            )
        axes.axhline(1, color="#555555", linewidth=1)
        axes.set_yscale("log")
        axes.set_xticks(range(len(rows)), [f"{r.workload}\n{format_millions(r.parameters)}" for r in rows])
        axes.set_ylabel(f"times as fast, K = {k}", fontsize=12)
        use_plain_ticks(axes.yaxis)
        apply_style(axes)
        axes.grid(axis="x", visible=False)
        axes.tick_params(axis="x", labelsize=9)
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(PEERS), fontsize=11, frameon=False)
    figure.savefig(path, dpi=120)


def draw_times(records: Sequence[Record], path: Path) -> None:
    """Draw milliseconds of a step against K, of every contender, on some workloads."""
    steps = [r for r in float32_steps(records) if r.contender != "copy" and not r.contender.startswith("balanced")]
    measured = list(dict.fromkeys(record.workload for record in steps))
    workloads = [name for name in SHOWN if name in measured] or measured[: len(SHOWN)]
    contenders = list(dict.fromkeys(record.contender for record in steps))
    figure = Figure(figsize=(4.2 * len(workloads) + 2, 4.4), layout="constrained")
    for axes, workload in zip(figure.subplots(1, len(workloads), squeeze=False)[0], workloads, strict=True):
        for number_of_line, contender in enumerate(contenders):
            line = [r for r in steps if (r.workload, r.contender) == (workload, contender)]
            line.sort(key=lambda r: r.terms)
            axes.plot(
                [r.terms for r in line],
                [1e3 * r.seconds.median for r in line],
                MARKERS[number_of_line % len(MARKERS)] + ("-" if contender.startswith("mtadam") else "--"),
                color=COLORS[number_of_line % len(COLORS)],
                label=PEERS.get(contender, contender),
            )
        axes.set_yscale("log")
        axes.set_xticks(sorted({r.terms for r in steps}))
        axes.set_xlabel("K", fontsize=12)
        axes.set_title(workload, fontsize=12)
        use_plain_ticks(axes.yaxis)
        apply_style(axes)
    figure.axes[0].set_ylabel("ms of a step", fontsize=12)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", fontsize=11, frameon=False)
    figure.savefig(path, dpi=120)


# By name of the file: what it shows, and its making.
PICTURES = {
    "bandwidth.png": ("Bandwidth against parameters", draw_bandwidth),
    "peers.png": ("Times as fast as each peer", draw_peers),
    "times.png": ("Time of a step against K", draw_times),
}
