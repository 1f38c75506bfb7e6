"""The most telling records in ten lines of plain words."""

from collections.abc import Iterable, Sequence

from bench.harness.records import OURS, Record
from bench.report.tables import (
    OPTIMIZERS,
    fastest_backends,
    format_number,
    format_ratio,
    kind_of,
    sort_records,
)

LINES = 10
# By group: what a record of ours can be compared with, the most telling first.
PEERS = {
    "step": {
        "adam-k-times": "{K} fused Adam steps",
        "published": "the published loop",
        "compiled": "torch.compile's step",
        "adam-on-sum": "one fused Adam step",
    },
    "combine": {"torchjd": "TorchJD + Adam", "adam-on-sum": "one fused Adam step"},
    "train": {"published": "the published loop", "adam-on-sum": "Adam on the sum"},
    "train-combine": {"torchjd": "TorchJD + Adam", "adam-on-sum": "Adam on the sum"},
    "gan": {"balanced-all": "without inputs=", "adam-on-sum-inputs": "Adam on the sum, inputs= too"},
    "one-pass": {"torchjd-autogram": "TorchJD's autogram", "torchjd": "TorchJD", "adam-on-sum": "Adam on the sum"},
}
WHAT = {
    **{"step": "a step", "combine": "a step", "gan": "a generator's step"},
    **dict.fromkeys(("train", "train-combine", "one-pass"), "a training step"),
}
NOT_SHOWN = ("balanced-all", "rule-per-term", "rule-last-layer")  # another way of ours stands for them
# What to show before all else: group, kind of optimizer, workload and K, and the peer to compare with.
FIRST = {
    ("step", "mtadam", "resnet50", 4): "adam-k-times",
    ("step", "balanced", "resnet50", 4): "adam-k-times",
    ("step", "mtadam", "mnist", 10): "published",
    ("step", "balanced", "mnist", 10): "adam-k-times",
    ("step", "mtadam", "tiny_1000", 4): "adam-k-times",
    ("combine", "combined", "mnist", 2): "torchjd",
    ("train", "mtadam", "digit_classes", 10): "published",
    ("train", "mtadam", "super_resolution", 4): "adam-on-sum",
    ("gan", "balanced", "dcgan_4", 3): "balanced-all",
    ("one-pass", "rule", "shared_trunk", 8): "torchjd-autogram",
}


def say_ratio(ratio: float, peer: str) -> str:
    """Say how fast something is beside a peer."""
    if 0.95 < ratio < 1.05:
        return f"as fast as {peer}"
    if ratio > 1:
        return f"{two_digits(ratio)} times as fast as {peer}"
    return f"{two_digits(1 / ratio)} times as long as {peer}"


def two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def key_of(record: Record) -> tuple[str, str, str, int]:
    """Return the key that ``FIRST`` has for a record, if it has one."""
    return record.group, kind_of(record), record.workload, record.terms


def choose_records(records: Iterable[Record]) -> list[Record]:
    """Return at most ``LINES`` records of ours, the most telling first."""
    ours = [r for r in records if r.contender.startswith(OURS) and r.contender not in NOT_SHOWN and r.group in PEERS]
    by_group = [sort_records(fastest_backends(r for r in ours if r.group == group)) for group in PEERS]
    places = {key: number for number, key in enumerate(FIRST)}
    found = (record for of_group in by_group for record in of_group)
    return sorted(found, key=lambda record: places.get(key_of(record), len(places)))[:LINES]


def compare(record: Record) -> str:
    """Say how fast a record of ours is beside its most telling peer. Empty if there was none."""
    wanted = [FIRST.get(key_of(record)), *PEERS[record.group]]
    peer = next((name for name in wanted if name in record.faster_than), None)
    if peer is None:
        return ""
    return f", {say_ratio(record.faster_than[peer].median, PEERS[record.group][peer].format(K=record.terms))}"


def describe(record: Record) -> list[str]:
    """Return the cells of a record's line."""
    optimizer = OPTIMIZERS.get(kind_of(record), "RuleWeighting") + (f"({record.rule})" if record.rule else "")
    text = f"{format_number(1e3 * record.seconds.median)} ms {WHAT[record.group]}{compare(record)}"
    return [optimizer, f"{record.workload}, K = {record.terms}", text]


def headlines(records: Iterable[Record]) -> str:
    """Format the most telling records, a line for each, in columns."""
    rows = [describe(record) for record in choose_records(records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def gan_sentences(records: Sequence[Record]) -> str:
    """Say what ``inputs=`` saves in a GAN, for the top README. Empty without records of that group."""
    found = {(r.workload, r.contender): r for r in records if r.group == "gan"}
    sentences = []
    for workload, judges in (("dcgan", "one discriminator"), ("dcgan_4", "four discriminators")):
        if (workload, "balanced-inputs") not in found:
            continue
        fast, slow = found[workload, "balanced-inputs"], found[workload, "balanced-all"]
        times = (format_number(1e3 * record.seconds.median) for record in (fast, slow))
        sentences.append(
            f"With {judges} a generator's step of {fast.terms} terms takes {' ms instead of '.join(times)} ms: it is "
            f"{format_ratio(fast.faster_than['balanced-all'])} times as fast."
        )
    return "\n".join(sentences)
