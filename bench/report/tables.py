"""The records as Markdown tables; ``python -m bench.report.tables FILE`` prints the short ones of a JSON file."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.harness import byte_model
from bench.harness.measure import Quartiles
from bench.harness.records import OURS, LeftOut, Record, load
from bench.workloads.shapes import WORKLOADS

Row = dict[str, str]


def markdown(rows: Sequence[Row]) -> str:
    """Format a Markdown table. Its columns are those that any row fills, in order."""
    columns = list(dict.fromkeys(column for row in rows for column, cell in row.items() if cell))
    cells = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def format_number(value: float | None) -> str:
    """Format three significant digits, without an exponent. Empty for None."""
    return "" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_ratio(value: Quartiles | None) -> str:
    """Format the median, and the quartiles where they differ from it."""
    if value is None:
        return ""
    low, median, high = format_number(value.low), format_number(value.median), format_number(value.high)
    return median if low == median == high else f"{median} ({low} to {high})"


def format_millions(parameters: int) -> str:
    return f"{format_number(parameters / 1e6)} M"


def sort_records(records: Iterable[Record]) -> list[Record]:
    """Sort by workload and K, whatever the order of measuring, bfloat16 last. Other workloads keep their order."""
    places = {workload: i for i, workload in enumerate(WORKLOADS)}

    def key(record: Record) -> tuple[bool, int, int]:
        known = record.workload in places
        return record.dtype == "bfloat16", places.get(record.workload, len(places)), record.terms if known else 0

    return sorted(records, key=key)


def our_records(records: Iterable[Record], group: str, ours: str | tuple[str, ...] = OURS) -> list[Record]:
    """Return the records of our optimizers in a group, or of those whose names start with ``ours``."""
    return sort_records(r for r in records if r.group == group and r.contender.startswith(ours))


def kind_of(record: Record) -> str:
    """Return which of our optimizers a record is of: the first part of the contender's name."""
    return record.contender.split("-", 1)[0]


def case_key(record: Record) -> tuple:
    """Return what identifies the case of a record in its group."""
    return record.workload, record.dtype, record.terms, record.rule


def fastest_backends(records: Iterable[Record]) -> list[Record]:
    """Return, for each case, the record of the fastest backend, launched eagerly."""
    best: dict[tuple, Record] = {}
    for record in records:
        case = *case_key(record), kind_of(record)
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
RULE_PEERS = {  # where a rule weights the terms
    "torchjd": "TorchJD + Adam",
    "torchjd-layerwise": "TorchJD layerwise",
    "torchjd-autogram": "TorchJD autogram",
}


def case_columns(record: Record) -> Row:
    """Return the columns that identify what was measured."""
    bf16 = ", bf16" if record.dtype == "bfloat16" else ""
    workload = f"{record.workload} ({format_millions(record.parameters)}{bf16})"
    return {"workload": workload, "rule": record.rule, "K": str(record.terms)}


def speed_columns(record: Record) -> Row:
    """Return time and GB/s of a step."""
    return {
        "ms": format_number(1e3 * record.seconds.median),
        "GB/s": format_number(record.gb_per_second),
        "x copy bandwidth": format_number(record.of_copy),
    }


def peer_names(record: Record) -> Row:
    """Return the column of each contender that a record of ours is compared with."""
    others = {record.contender.replace("cuda", "triton"): "Triton"}
    if kind_of(record) == "balanced":
        others[record.contender.replace("balanced", "mtadam")] = "MTAdam"
    return RULE_PEERS | PEERS | others


def peer_columns(record: Record) -> Row:
    """Return how many times as fast as each peer a step is."""
    return {peer: format_ratio(record.faster_than.get(name)) for name, peer in peer_names(record).items()}


def host_columns(record: Record) -> Row:
    """Return the host's time of a step, and how many times as fast as the peers' it is."""
    of_peers = {
        f"{peer}, host": format_ratio(record.host_faster_than.get(name)) for name, peer in peer_names(record).items()
    }
    return {"host ms": format_number(1e3 * record.host.median), **of_peers}


def memory_columns(record: Record) -> Row:
    """Return bytes per parameter."""
    return {
        "contender": record.contender,
        "state": format_number(record.state_bytes),
        "by the model": format_number(record.model_state_bytes),
        "allocated by a step": format_number(record.peak_bytes),
    }


def backend_column(record: Record) -> Row:
    return {"backend": record.contender.split("-", 1)[1]}


OPTIMIZERS = {"mtadam": "MTAdam", "balanced": "BalancedAdam", "combined": "CombinedAdam"}


def optimizer_column(record: Record) -> Row:
    return {"optimizer": OPTIMIZERS[kind_of(record)]}


# -- tables ------------------------------------------------------------------------------------------------------------


def short_tables(records: Sequence[Record]) -> str:
    """Format the fastest backend's step for the top README: a table for each of our optimizers."""
    found = [
        fastest_backends(our_records(records, group, ours))
        for group, ours in (("step", "mtadam"), ("step", "balanced"), ("combine", "combined"))
    ]
    return "\n\n".join(
        markdown([optimizer_column(r) | case_columns(r) | speed_columns(r) | peer_columns(r) for r in of_group])
        for of_group in found
        if of_group
    )


def all_tables(records: Sequence[Record]) -> dict[str, str]:
    """Format every table, by its title."""
    steps, combined = our_records(records, "step"), our_records(records, "combine")
    of_memory = sort_records(r for r in records if r.group == "memory")
    found = {
        "Speed of a step": [
            optimizer_column(r) | case_columns(r) | backend_column(r) | speed_columns(r) for r in steps
        ],
        "Step: times as fast as": [
            optimizer_column(r) | case_columns(r) | backend_column(r) | peer_columns(r) for r in steps
        ],
        "A step beside what memory allows": limit_rows(records),
        "Weights by a rule, and Adam's step": [
            case_columns(r) | backend_column(r) | speed_columns(r) | peer_columns(r) for r in combined
        ],
        "Host's time of a step": [
            optimizer_column(r) | case_columns(r) | backend_column(r) | host_columns(r)
            for r in steps + combined
            if r.host != r.seconds
        ],
        "Host's time of taking the gradients, before a step": [
            taking_row(r) for r in our_records(records, "gradients")
        ],
        "Whole training step": [
            training_row(r) for r in our_records(records, "train") + our_records(records, "train-combine")
        ],
        "Whole training step with a rule, on a trunk that all terms share": [
            one_pass_row(r) for r in sort_records(r for r in records if r.group == "one-pass")
        ],
        "Generator's step of a GAN": [gan_row(r) for r in sort_records(r for r in records if r.group == "gan")],
        "Memory, bytes per parameter": [case_columns(r) | memory_columns(r) for r in of_memory],
    }
    return {title: markdown(rows) for title, rows in found.items() if rows}


def limit_rows(records: Sequence[Record]) -> list[Row]:
    """Return our steps beside one Adam's GB/s, and what they read beside what a sum reads."""
    rates = {(case_key(r), r.contender): r.gb_per_second for r in records if r.group == "limit" and r.gb_per_second}
    return [limit_row(r, rates) for r in our_records(records, "limit")]


def limit_row(record: Record, rates: Mapping[tuple, float]) -> Row:
    """Return the row of a step. ``rates`` has the GB/s of each case's contenders."""
    element = 2 if record.dtype == "bfloat16" else 4
    moved, read = {
        "mtadam": (byte_model.mtadam_step, byte_model.mtadam_read),
        "balanced": (byte_model.balanced_step, byte_model.balanced_read),
    }[kind_of(record)]
    case = case_key(record)
    own, adam, alone = rates[case, record.contender], rates.get((case, "adam-on-sum")), rates.get((case, "read"))
    reading = own * read(record.terms, element) / moved(record.terms, element)
    return {
        **(optimizer_column(record) | case_columns(record) | speed_columns(record)),
        "x one Adam's GB/s": format_number(adam and own / adam),
        "reads GB/s": format_number(reading),
        "a sum reads GB/s": format_number(alone),
        "x what a sum reads": format_number(alone and reading / alone),
    }


def taking_row(record: Record) -> Row:
    """Return the host's time of taking the gradients, beside that of setting ``p.grad`` alone."""
    milliseconds = 1e3 * record.host.median
    alone = record.host_faster_than.get("set-grad")
    return case_columns(record) | {
        "tensors": str(record.tensors),
        "host ms": format_number(milliseconds),
        "setting p.grad, ms": format_number(milliseconds * alone.median if alone else None),
    }


def training_row(record: Record) -> Row:
    """Return a training step of ours beside its peers'."""
    return case_columns(record) | {"ms": format_number(1e3 * record.seconds.median)} | peer_columns(record)


def one_pass_row(record: Record) -> Row:
    """Return a training step of ours or of a peer: time, memory, and ours beside the peers'."""
    looks_at = {
        **{"rule-features": "features", "rule-last-layer": "last shared layer", "rule-per-term": "all parameters"},
        **{"adam-on-sum": "nothing: one Adam on the sum"},
    }
    name = looks_at.get(record.contender) or RULE_PEERS[record.contender]
    return case_columns(record) | {
        "rule looks at": name,
        "ms": format_number(1e3 * record.seconds.median),
        "bytes per parameter allocated": format_number(record.peak_bytes),
        **peer_columns(record),
    }


# The contenders of the group "gan": optimizer, and the networks whose gradients a step computes.
GENERATOR_ONLY, BOTH = "generator (`inputs=`)", "generator and discriminators"
GAN_STEPS = {
    "balanced-inputs": ("BalancedAdam", GENERATOR_ONLY),
    "balanced-all": ("BalancedAdam", BOTH),
    "adam-on-sum-inputs": ("Adam on the sum", GENERATOR_ONLY),
    "adam-on-sum": ("Adam on the sum", BOTH),
}


def gan_row(record: Record) -> Row:
    """Return a generator's step of ours or of Adam on the sum of the losses, ours beside the others."""
    optimizer, computed = GAN_STEPS[record.contender]
    compared = {
        "without inputs=": "balanced-all",
        "Adam on the sum, inputs=": "adam-on-sum-inputs",
        "Adam on the sum": "adam-on-sum",
    }
    return {
        "optimizer": optimizer,
        **case_columns(record),
        "gradients of": computed,
        "ms": format_number(1e3 * record.seconds.median),
        **{peer: format_ratio(record.faster_than.get(name)) for peer, name in compared.items()},
    }


def list_left_out(left_out: Iterable[LeftOut]) -> str:
    """Format a line for each reason: the contenders, and the cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for entry in left_out:
        cases.setdefault((entry.contender, entry.reason), []).append(f"{entry.group} {entry.case}")
    contenders: dict[tuple[str, ...], list[str]] = {}
    for (contender, reason), of in cases.items():
        contenders.setdefault((reason, list_cases(of)), []).append(contender)
    return "\n".join(f"* {', '.join(who)}: {why} ({of})" for (why, of), who in contenders.items())


def list_cases(cases: Sequence[str]) -> str:
    """List the cases, or count them if they are many."""
    return ", ".join(cases) if len(cases) <= 6 else f"{len(cases)} cases"


def summary(records: Sequence[Record], left_out: Sequence[LeftOut]) -> str:
    """Format what is printed at the end of a run."""
    parts = [f"{title}\n\n{table}" for title, table in all_tables(records).items()]
    return "\n\n".join([*parts, f"Left out\n\n{list_left_out(left_out) or 'nothing'}"])


if __name__ == "__main__":
    print(short_tables(load(Path(sys.argv[1])).records))
