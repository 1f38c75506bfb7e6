"""The flat record of a benchmark: made from samples, written to JSON and CSV, and read back.

Records travel as ``extra_info`` in pytest-benchmark's JSON, so that one file holds all.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.harness.measure import Quartiles, Times, quartiles, speedup

OURS = ("mtadam", "balanced", "combined", "rule")  # the names of our contenders start with one of these
JSON_NAME, CSV_NAME = "benchmarks.json", "records.csv"


@dataclass(frozen=True)
class Record:
    """The measurements of one contender in one case."""

    group: str  # of bench.harness.suite.GROUPS
    workload: str
    parameters: int
    tensors: int
    terms: int
    dtype: str
    contender: str
    seconds: Quartiles  # on the device
    host: Quartiles  # seconds until the call returned
    rule: str = ""  # that weights the terms
    gb_per_second: float | None = None  # by the byte model
    of_copy: float | None = None  # the fraction of the copy's GB/s in the same turns
    state_bytes: float | None = None  # per parameter element
    peak_bytes: float | None = None  # per parameter element, allocated by a step
    model_state_bytes: float | None = None  # what the byte model says
    other_cpus: float | None = None  # that others kept busy while the case was measured
    faster_than: dict[str, Quartiles] = field(default_factory=dict)  # times as fast as others, turn by turn
    host_faster_than: dict[str, Quartiles] = field(default_factory=dict)

    @staticmethod
    def from_info(info: dict[str, Any]) -> "Record":
        """Convert a record back from JSON."""
        ratios = {
            name: {other: Quartiles(**values) for other, values in info[name].items()}
            for name in ("faster_than", "host_faster_than")
        }
        return Record(**{**info, "seconds": Quartiles(**info["seconds"]), "host": Quartiles(**info["host"]), **ratios})


@dataclass(frozen=True)
class LeftOut:
    """A contender that took no part in a case, and why."""

    group: str
    case: str
    contender: str
    reason: str


@dataclass(frozen=True)
class BenchmarkRun:
    """All records of one run of the benchmarks."""

    machine: dict[str, Any]
    commit: str
    time: str
    records: list[Record]
    left_out: list[LeftOut]
    added: dict[str, str] = field(default_factory=dict)  # groups that were measured apart: commit and day


def make_records(times: Times, moved: dict[str, float | None], **case: Any) -> dict[str, Record]:
    """Make a record for each contender. Ours have the ratios to all others."""
    rates = {name: b / quartiles(times.device(name)).median / 1e9 for name, b in moved.items() if b is not None}
    records = {}
    for name in times.samples:
        others = [other for other in times.samples if other not in (name, "copy") and name.startswith(OURS)]
        records[name] = Record(
            **case,
            contender=name,
            other_cpus=times.other_cpus,
            seconds=quartiles(times.device(name)),
            host=quartiles(times.host(name)),
            gb_per_second=rates.get(name),
            of_copy=rates[name] / rates["copy"] if name in rates and "copy" in rates else None,
            faster_than={other: speedup(times.device(name), times.device(other)) for other in others},
            host_faster_than={other: speedup(times.host(name), times.host(other)) for other in others},
        )
    return records


def to_info(record: Record) -> dict[str, Any]:
    """Convert a record for pytest-benchmark's ``extra_info``."""
    return asdict(record)


def write(saved: dict[str, Any], folder: Path) -> None:
    """Write what pytest-benchmark saves into the folder's JSON and CSV.

    Whoever is stopped in the middle leaves the JSON as it was.
    """
    beside = folder / f"{JSON_NAME}.part"
    beside.write_text(json.dumps(saved, indent=4, default=str))
    beside.replace(folder / JSON_NAME)
    write_csv(parse(saved), folder / CSV_NAME)


def load(path: Path) -> BenchmarkRun:
    """Read a file of pytest-benchmark's JSON that holds our records."""
    return parse(json.loads(path.read_text()))


def parse(saved: dict[str, Any]) -> BenchmarkRun:
    """Take the records out of what pytest-benchmark saves."""
    return BenchmarkRun(
        machine=saved["machine_info"],
        commit=describe_commit(saved["commit_info"]),
        time=saved["datetime"],
        records=[Record.from_info(benchmark["extra_info"]) for benchmark in saved["benchmarks"]],
        left_out=[LeftOut(**entry) for entry in saved["left_out"]],
        added=saved.get("added", {}),
    )


def describe_commit(commit: dict[str, Any]) -> str:
    """Return the commit that was measured, and whether the sources had changed since."""
    return commit["id"][:10] + (" and changes" if commit["dirty"] else "") if commit["id"] else "unversioned"


FACTS = ("cpu_model", "gpu", "driver", "threads", "python", "torch", "triton")


def differing_facts(before: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    """Return the facts in which a machine differs from that of a record: what is measured there does not fit in."""
    return [name for name in FACTS if before["machine_info"][name] != machine[name]]


def merge(before: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Return an earlier record, the groups that ``saved`` has replaced. Machine, commit and time stay the earlier ones.

    Both are as pytest-benchmark saves them.
    """
    measured = {b["extra_info"]["group"] for b in saved["benchmarks"]} | {e["group"] for e in saved["left_out"]}
    note = f"commit {describe_commit(saved['commit_info'])}, {saved['datetime'][:10]}"
    kept = [b for b in before["benchmarks"] if b["extra_info"]["group"] not in measured]
    return {
        **before,
        "benchmarks": kept + saved["benchmarks"],
        "left_out": [e for e in before["left_out"] if e["group"] not in measured] + saved["left_out"],
        "added": before.get("added", {}) | dict.fromkeys(sorted(measured), note),
    }


def flat(run: BenchmarkRun) -> Iterable[dict[str, Any]]:
    """Yield a flat row for each record: machine, fields, and three columns for each ratio."""
    place = {"commit": run.commit, "time": run.time, **{name: run.machine[name] for name in FACTS}}
    for record in run.records:
        row = dict(place)
        for name in (f.name for f in fields(Record)):
            value = getattr(record, name)
            if isinstance(value, dict):
                for other, ratio in value.items():
                    row |= {f"{name} {other}": ratio.median, f"{name} {other} low": ratio.low}
                    row |= {f"{name} {other} high": ratio.high}
            elif isinstance(value, Quartiles):
                row |= {name: value.median, f"{name} low": value.low, f"{name} high": value.high}
            else:
                row[name] = value
        yield row


def write_csv(run: BenchmarkRun, path: Path) -> None:
    """Write one line for each record, to six digits."""
    rows = list(flat(run))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
