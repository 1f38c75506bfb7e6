"""Pictures of the records of one run."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.harness.records import Record
from bench.report.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    LOOKS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Look,
    apply_style,
    make_figure,
    save,
    use_plain_ticks,
)
from bench.report.tables import (
    PEERS,
    fastest_backends,
    format_millions,
    format_number,
    kind_of,
    our_records,
    sort_records,
)

SHOWN = ("mnist", "resnet50", "bert_base")  # in the picture of times against K, where measured
HERO = "resnet50"  # the workload of the picture of time and memory
FLOAT = 4  # bytes of a gradient's element
ARROWS = "$\\leftarrow$ {}          {} $\\rightarrow$"  # what is to the left, or below, and to the right, or above
HATCHES = ("", "//", "..", "xx")  # tell the peers apart without colors

# By the first part of a contender's name: what it is called, and its look.
CONTENDERS = {
    "published": ("published loop", Look(VERMILLION, "D", "-.")),
    "torchjd": ("TorchJD PCGrad + Adam", Look(PURPLE, "v", ":")),
    "compiled": ("torch.compile", Look(ORANGE, "P", (0, (5, 1, 1, 1)))),
    "mtadam": ("MTAdam (ours)", Look(BLUE, "o")),
    "balanced": ("BalancedAdam (ours)", Look(GREEN, "s")),
    "adam-k-times": ("K fused Adams", Look(BLACK, "^", "--")),
    "adam-on-sum": ("one fused Adam", Look(SKY, "X", (0, (1, 2)))),
}


def float32_steps(records: Sequence[Record]) -> list[Record]:
    """Return the records of float32 steps."""
    return [record for record in records if record.group == "step" and record.dtype == "float32"]


def without_slower_backends(records: Iterable[Record]) -> list[Record]:
    """Return the peers' records, and those of our fastest backends."""
    found = list(records)
    ours = our_records(found, found[0].group) if found else []
    return [*fastest_backends(ours), *(r for r in found if r not in ours)]


def draw_lines(axes: Axes, records: Iterable[Record], value: Callable[[Record], float]) -> None:
    """Draw a value of each contender against K, on a logarithmic scale."""
    found = sorted(records, key=lambda r: r.terms)
    for name, (label, look) in CONTENDERS.items():
        line = [r for r in found if name in (r.contender, kind_of(r))]
        if line:
            axes.plot([r.terms for r in line], [value(r) for r in line], label=label, **look.of_line())
    axes.set_yscale("log")
    axes.set_xticks(sorted({r.terms for r in found}))
    axes.set_xlabel("K, the number of loss terms")
    use_plain_ticks(axes.yaxis)
    apply_style(axes)


def add_legend(figure: Figure) -> None:
    """Explain all lines below the panels, each once."""
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=3)


def draw_hero(records: Sequence[Record], path: Path) -> None:
    """Draw time and memory of a step against K, of ours and of all peers that were measured on one workload.

    Times are in steps of one fused Adam, measured in the same turns: the cases were not all measured in the same hour.
    """
    mine = [r for r in records if r.workload == HERO and r.dtype == "float32"]
    adams = {(r.group, r.terms, r.rule): r.seconds.median for r in mine if r.contender == "adam-on-sum"}
    steps = [r for r in mine if r.group == "step" or (r.group == "combine" and r.contender == "torchjd")]
    steps = [r for r in steps if r.rule in ("", "PCGrad") and (r.group, r.terms, r.rule) in adams]
    memory = [r for r in mine if r.group == "memory" and not r.contender.endswith(("-reference", "-layerwise"))]
    figure = make_figure(11, 5.6)
    of_time, of_memory = figure.subplots(1, 2)
    draw_lines(of_time, without_slower_backends(steps), lambda r: r.seconds.median / adams[r.group, r.terms, r.rule])
    of_time.set_title("Time of a step")
    of_time.set_ylabel("in steps of one fused Adam (log scale)\n" + ARROWS.format("faster", "slower"))
    draw_lines(of_memory, memory, bytes_held)
    of_memory.set_title("Memory: state, gradients, temporaries")
    size = format_millions(mine[0].parameters)
    figure.suptitle(f"One step on ResNet-50 ({size} parameters), float32", fontsize="large")
    of_memory.set_ylabel("bytes per parameter (log scale)\n" + ARROWS.format("less", "more"))
    add_legend(figure)
    save(figure, path)


def bytes_held(record: Record) -> float:
    """Return the bytes per parameter of the state, of the terms' gradients, and of what the step allocates."""
    gradients = 1 if record.contender == "adam-on-sum" else record.terms
    return (record.state_bytes or 0) + FLOAT * gradients + (record.peak_bytes or 0)


def draw_bandwidth(records: Sequence[Record], path: Path) -> None:
    """Draw GB/s by the byte model against parameters, for each backend and K, under the copy's."""
    steps = our_records(float32_steps(records), "step", "mtadam")
    backends = list(dict.fromkeys(record.contender for record in steps))
    terms = sorted({record.terms for record in steps})
    figure = make_figure(11, 6.5)
    axes = figure.subplots()
    for backend, of_backend in zip(backends, LOOKS, strict=False):
        for k, of_terms in zip(terms, LOOKS, strict=False):
            line = sorted((r for r in steps if (r.contender, r.terms) == (backend, k)), key=lambda r: r.parameters)
            look = Look(of_terms.color, of_terms.marker, of_backend.line)
            label = f"{backend.removeprefix('mtadam-')}, K = {k}"
            axes.plot([r.parameters for r in line], [r.gb_per_second or 0 for r in line], label=label, **look.of_line())
    copies = [r.gb_per_second for r in float32_steps(records) if r.contender == "copy" and r.gb_per_second]
    if copies:
        rate = median(copies)
        axes.axhline(rate, color=GRAY, linestyle="--", linewidth=1.2)
        axes.annotate("a copy", (0.01, rate), xycoords=("axes fraction", "data"), va="bottom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("parameters of the network (log scale)")
    axes.set_ylabel("GB/s, of 16K + 16 bytes per parameter (log scale)\n" + ARROWS.format("slower", "faster"))
    axes.set_title("Bandwidth of MTAdam's step, float32")
    use_plain_ticks(axes.yaxis)
    apply_style(axes)
    figure.legend(loc="outside lower center", ncols=len(terms))
    save(figure, path)


def draw_peers(records: Sequence[Record], path: Path) -> None:
    """Draw how many times as fast as each peer the fastest backend is, with the turns' quartiles."""
    best = sorted(fastest_backends(our_records(float32_steps(records), "step", "mtadam")), key=lambda r: r.parameters)
    terms = sorted({record.terms for record in best})
    workloads = list(dict.fromkeys(record.workload for record in best))
    figure = make_figure(3.2 * len(terms) + 2.4, 0.85 * len(workloads) + 2)
    for axes, k in zip(figure.subplots(1, len(terms), sharex=True, sharey=True, squeeze=False)[0], terms, strict=True):
        rows = [record for record in best if record.terms == k]
        for number_of_peer, (name, label) in enumerate(PEERS.items()):
            measured = [r for r in rows if name in r.faster_than]
            found = [r.faster_than[name] for r in measured]
            axes.barh(
                [workloads.index(r.workload) + (number_of_peer - 1.5) * 0.2 for r in measured],
                [ratio.median - 1 for ratio in found],
                0.18,
                left=1,
                xerr=[[r.median - r.low for r in found], [r.high - r.median for r in found]],
                color=CONTENDERS[name][1].color,
                hatch=HATCHES[number_of_peer],
                edgecolor="white",
                error_kw={"elinewidth": 0.9},
                label=label,
            )
        axes.axvline(1, color=GRAY, linewidth=1)
        axes.set_xscale("log")
        axes.set_title(f"K = {k}")
        axes.set_xlabel(ARROWS.format("slower", "faster").replace("      ", ""))
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
        apply_style(axes)
        axes.grid(axis="y", visible=False)
    sizes = {record.workload: format_millions(record.parameters) for record in best}
    figure.axes[0].set_yticks(range(len(workloads)), [f"{name}\n{sizes[name]}" for name in workloads])
    figure.axes[0].set_ylim(len(workloads) - 0.5, -0.5)
    figure.supxlabel("times faster than the peer (log scale); 1: as fast", fontsize="medium")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, title="MTAdam's step beside", loc="outside upper center", ncols=len(PEERS))
    save(figure, path)


def draw_times(records: Sequence[Record], path: Path) -> None:
    """Draw milliseconds of a step against K, of every contender, on some workloads."""
    steps = sort_records(r for r in float32_steps(records) if r.contender != "copy")
    measured = list(dict.fromkeys(record.workload for record in steps))
    workloads = [name for name in SHOWN if name in measured] or measured[: len(SHOWN)]
    figure = make_figure(3.6 * len(workloads) + 0.8, 5.2)
    for axes, workload in zip(figure.subplots(1, len(workloads), squeeze=False)[0], workloads, strict=True):
        of_workload = [r for r in steps if r.workload == workload]
        draw_lines(axes, without_slower_backends(of_workload), lambda r: 1e3 * r.seconds.median)
        axes.set_title(f"{workload}, {format_millions(of_workload[0].parameters)} parameters")
    figure.axes[0].set_ylabel("ms of a step (log scale)\n" + ARROWS.format("faster", "slower"))
    add_legend(figure)
    save(figure, path)


# By name of the file: what it shows, and its making.
PICTURES = {
    "hero.png": ("Time and memory of a step against K", draw_hero),
    "bandwidth.png": ("Bandwidth against parameters", draw_bandwidth),
    "peers.png": ("Times as fast as each peer", draw_peers),
    "times.png": ("Time of a step against K", draw_times),
}
