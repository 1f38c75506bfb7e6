"""The most telling records in ten lines of plain words."""

from collections.abc import Iterable, Sequence

from bench.harness.records import OURS, Record
from bench.report.tables import (
    OPTIMIZERS,
    fastest_backends,
    format_number,
    format_ratio,
    kind_of,
    markdown,
    our_records,
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


def say_faster(ratio: float) -> str:
    """Say in words how many times faster or slower something is."""
    if 0.95 < ratio < 1.05:
        return "as fast"
    return f"{two_digits(ratio)} times faster" if ratio > 1 else f"{two_digits(1 / ratio)} times slower"


# The rows of README: group, kind of optimizer and peer, what is compared, and the case to show first.
SPEED_ROWS = (
    ("step", "mtadam", "published", "`MTAdam` and the published loop", ("resnet50", 4)),
    ("step", "mtadam", "compiled", "`MTAdam` and `torch.compile` of our reference", ("mnist", 4)),
    ("step", "mtadam", "adam-k-times", "`MTAdam` and K steps of fused Adam", ("resnet50", 4)),
    ("step", "balanced", "adam-on-sum", "`BalancedAdam` and one step of fused Adam", ("resnet50", 4)),
    ("combine", "combined", "torchjd", "`CombinedAdam(PCGrad())` and TorchJD with Adam", ("resnet50", 4)),
)
SPEED_RULES = ("", "PCGrad")


def speed_table(records: Sequence[Record]) -> str:
    """Say how fast our steps are beside five peers: in one case, at worst and at best. Empty without records."""
    rows = []
    for group, kind, peer, what, first in SPEED_ROWS:
        found = fastest_backends(our_records(records, group, kind))
        measured = sorted(
            (r for r in found if peer in r.faster_than and r.rule in SPEED_RULES and r.dtype == "float32"),
            key=lambda r: r.faster_than[peer].median,
        )
        if measured:
            shown = next((r for r in measured if (r.workload, r.terms) == first), measured[-1])
            cases = {"ours is": shown, "at worst": measured[0], "at best": measured[-1]}
            cells = {column: say_case(r, peer) for column, r in cases.items()}
            rows.append({"a step of ours, and of a peer": what} | cells)
    return markdown(rows) if rows else ""


def say_case(record: Record, peer: str) -> str:
    """Say how fast a record of ours is beside a peer, and in which case."""
    return f"{say_faster(record.faster_than[peer].median)} ({record.workload}, K = {record.terms})"


# Whole training steps: group and peer, whose of ours, and whose of the peer's.
TRAINING = (
    ("train", "adam-on-sum", "`MTAdam`'s", "Adam's on the sum of the losses"),
    ("train-combine", "torchjd", "`CombinedAdam(PCGrad())`'s", "TorchJD's with Adam"),
)


def training_sentences(records: Sequence[Record]) -> str:
    """Say what whole training steps cost beside a peer's, for README. Empty without records."""
    parts = []
    for group, peer, ours, theirs in TRAINING:
        measured = [r for r in our_records(records, group) if peer in r.faster_than]
        measured.sort(key=lambda r: r.faster_than[peer].median)
        if measured:
            parts.append(f"{ours} are {say_case(measured[0], peer)} to {say_case(measured[-1], peer)} than {theirs}")
    return f"Of whole training steps, with their K backward passes, {', '.join(parts)}." if parts else ""


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
