"""The records as Markdown tables; ``python bench/tables.py FILE`` prints the short one of a JSON file."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.harness.measure import Spread
from bench.harness.records import OURS, LeftOut, Record, load
from bench.workloads.shapes import WORKLOADS

Row = dict[str, str]


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; its columns are those that any row fills, in order."""
    columns = list(dict.fromkeys(column for row in rows for column, cell in row.items() if cell))
    cells = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def number(value: float | None) -> str:
    """Three significant digits, without an exponent; nothing for None."""
    return "" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(value: Spread | None) -> str:
    """The median, and the quartiles where they differ from it."""
    if value is None:
        return ""
    low, median, high = number(value.low), number(value.median), number(value.high)
    return median if low == median == high else f"{median} ({low} to {high})"


def millions(parameters: int) -> str:
    return f"{number(parameters / 1e6)} M"


def in_order(records: Iterable[Record]) -> list[Record]:
    """By workload and K, in whatever order they were measured, bfloat16 last; the others as they are."""
    places = {workload: i for i, workload in enumerate(WORKLOADS)}

    def place(record: Record) -> tuple[bool, int, int]:
        known = record.workload in places
        return record.dtype == "bfloat16", places.get(record.workload, len(places)), record.terms if known else 0

    return sorted(records, key=place)


def ours(records: Iterable[Record], group: str) -> list[Record]:
    """The records of our optimizers in a group."""
    return in_order(r for r in records if r.group == group and r.contender.startswith(OURS))


def fastest(records: Iterable[Record]) -> list[Record]:
    """Of each case, the record of the fastest backend, launched eagerly."""
    best: dict[tuple, Record] = {}
    for record in records:
        case = record.workload, record.dtype, record.terms, record.rule
        if not record.contender.endswith("-graph") and (
            case not in best or record.seconds.median < best[case].seconds.median
        ):
            best[case] = record
    return list(best.values())


# -- rows --------------------------------------------------------------------------------------------------------------

PEERS = {
    "adam-k-times": "K x Adam",
    "adam-on-sum": "one Adam",
    "published": "published loop",
    "compiled": "torch.compile",
}
OF_RULES = {"torchjd": "TorchJD + Adam", "torchjd-layerwise": "TorchJD layerwise"}  # where a rule weights the terms


def label(record: Record) -> Row:
    """The columns that say what was measured."""
    bf16 = ", bf16" if record.dtype == "bfloat16" else ""
    workload = f"{record.workload} ({millions(record.parameters)}{bf16})"
    return {"workload": workload, "rule": record.rule, "K": str(record.terms)}


def speed(record: Record) -> Row:
    """Time and GB/s of a step."""
    return {
        "ms": number(1e3 * record.seconds.median),
        "GB/s": number(record.gb_per_second),
        "of a copy's": number(record.of_copy),
    }


def others(record: Record) -> Row:
    """The column of each contender that a record of ours is compared with."""
    return OF_RULES | PEERS | {record.contender.replace("cuda", "triton"): "Triton"}


def peers(record: Record) -> Row:
    """How many times as fast as each peer a step is."""
    return {peer: ratio(record.faster_than.get(name)) for name, peer in others(record).items()}


def host(record: Record) -> Row:
    """The host's time of a step, and how many times as fast it is as the peers'."""
    of_peers = {f"{peer}, host": ratio(record.host_faster_than.get(name)) for name, peer in others(record).items()}
    return {"host ms": number(1e3 * record.host.median), **of_peers}


def memory(record: Record) -> Row:
    """Bytes per parameter."""
    return {
        "contender": record.contender,
        "state": number(record.state_bytes),
        "by the model": number(record.model_state_bytes),
        "allocated by a step": number(record.peak_bytes),
    }


def backend(record: Record) -> Row:
    return {"backend": record.contender.split("-", 1)[1]}


# -- tables ------------------------------------------------------------------------------------------------------------


def short(records: Sequence[Record]) -> str:
    """The fastest backend's step, a table for MTAdam and one for CombinedAdam, for the top README."""
    found = [fastest(ours(records, group)) for group in ("step", "combine")]
    return "\n\n".join(markdown([label(r) | speed(r) | peers(r) for r in of_group]) for of_group in found if of_group)


def full(records: Sequence[Record]) -> dict[str, str]:
    """Every table by its title."""
    steps, combined = ours(records, "step"), ours(records, "combine")
    of_memory = in_order(r for r in records if r.group == "memory")
    found = {
        "Speed of a step": [label(r) | backend(r) | speed(r) for r in steps],
        "Step: times as fast as": [label(r) | backend(r) | peers(r) for r in steps],
        "Weights by a rule, and Adam's step": [label(r) | backend(r) | speed(r) | peers(r) for r in combined],
        "Host's time of a step": [label(r) | backend(r) | host(r) for r in steps + combined if r.host != r.seconds],
        "Whole training step": [training(r) for r in ours(records, "train") + ours(records, "train-combine")],
        "Memory, bytes per parameter": [label(r) | memory(r) for r in of_memory],
    }
    return {title: markdown(rows) for title, rows in found.items() if rows}


def training(record: Record) -> Row:
    """A training step of ours beside its peers'."""
    return label(record) | {"ms": number(1e3 * record.seconds.median)} | peers(record)


def why_left_out(left_out: Iterable[LeftOut]) -> str:
    """A line for each reason: the contenders, and the cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for entry in left_out:
        cases.setdefault((entry.contender, entry.reason), []).append(f"{entry.group} {entry.case}")
    contenders: dict[tuple[str, ...], list[str]] = {}
    for (contender, reason), of in cases.items():
        contenders.setdefault((reason, few(of)), []).append(contender)
    return "\n".join(f"* {', '.join(who)}: {why} ({of})" for (why, of), who in contenders.items())


def few(cases: Sequence[str]) -> str:
    """The cases, or how many they are."""
    return ", ".join(cases) if len(cases) <= 6 else f"{len(cases)} cases"


def summary(records: Sequence[Record], left_out: Sequence[LeftOut]) -> str:
    """What is printed at the end of a run."""
    parts = [f"{title}\n\n{table}" for title, table in full(records).items()]
    return "\n\n".join([*parts, f"Left out\n\n{why_left_out(left_out) or 'nothing'}"])


if __name__ == "__main__":
    print(short(load(Path(sys.argv[1])).records))
