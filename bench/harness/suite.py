"""Report measurements to pytest-benchmark: contenders take turns, and each is a benchmark of its own."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest

from bench.harness.devices import Device, Sample
from bench.harness.measure import Budget, Failure
from bench.harness.records import LeftOut, Record, to_info

# In this order the groups are measured, but first the cases that decide on what the package promises: a GPU may be
# there for minutes only. The last needs five alone to compile the reference for 300 tensors: --compile-seconds 400.
GROUPS = ("step", "limit", "combine", "gradients", "memory", "train", "train-combine", "gan", "one-pass")
PROMISED = (
    *("equal_100m-K4", "mnist-K10", "small_300-K4", "bert_base-K4-bf16", "equal_20m-K4-PCGrad", "equal_20m-K4-MGDA"),
    *("equal_20m-K4-FixedWeights", "equal_100m-K2", "equal_100m-K10", "bert_base-K2-bf16", "bert_base-K10-bf16"),
    *("small_300-K10", "small_300-K2"),
)

NO_TIME = "no time was left"


def sort_key(group: str, case: str) -> tuple[int, int]:
    """Return what to sort the cases by, to measure them."""
    return PROMISED.index(case) if case in PROMISED else len(PROMISED), GROUPS.index(group)


@dataclass(frozen=True)
class Outcome:
    """The records of one case's contenders, and the reasons for those left out."""

    records: dict[str, Record] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # contenders, and why: a Failure fails the run
    failed: bool = False


class Clock:
    """pytest-benchmark's timer, moved on by measured seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> float:
        return self.seconds


CLOCK = Clock()


class Suite:
    """The device, the budget, and what has been measured. Contenders of a case take turns, so a case is measured at
    once; pytest-benchmark then gets each contender's samples as a benchmark of its own.

    Args:
        within: seconds from now in which a case may begin.
    """

    def __init__(self, device: Device, budget: Budget, within: float = math.inf) -> None:
        self.device = device
        self.budget = budget
        self.benchmarks: list[Any] = []  # pytest-benchmark's
        self.records: list[Record] = []
        self.left_out: list[LeftOut] = []
        self._end = time.monotonic() + within
        self._outcomes: dict[object, Outcome] = {}

    def report(self, request: pytest.FixtureRequest, measure: Callable[[str, "Suite"], Outcome]) -> None:
        """Pass what the test's contender did in the test's case to pytest-benchmark. Skip if it took no part, and
        fail if it should have.

        Args:
            measure: measures a case, given by its id.
        """
        case, contender = (request.node.callspec.params[name] for name in ("case", "contender"))
        if (measure, case) not in self._outcomes:
            if time.monotonic() >= self._end:
                self._leave_out(LeftOut(request.module.GROUP, case, contender, NO_TIME))
            self._outcomes[measure, case] = Outcome(failed=True)  # unless it returns
            self._outcomes[measure, case] = measure(case, self)
        outcome = self._outcomes[measure, case]
        if outcome.failed:
            pytest.fail("the case failed with its first contender")
        if reason := outcome.left_out.get(contender):
            self._leave_out(LeftOut(request.module.GROUP, case, contender, reason))
        benchmark = request.getfixturevalue("benchmark")
        benchmark.group = f"{request.module.GROUP} {case}"
        benchmark.extra_info |= to_info(outcome.records[contender])
        self.records.append(outcome.records[contender])
        replay(benchmark, outcome.samples[contender])
        if benchmark.stats:  # none with --benchmark-disable
            self.benchmarks.append(benchmark.stats)

    def cases_left_out_for_time(self) -> list[str]:
        """Return the groups and ids of the cases that no time was left for."""
        return list(dict.fromkeys(f"{entry.group} {entry.case}" for entry in self.left_out if entry.reason == NO_TIME))

    def other_cpus(self) -> list[float | None]:
        """Return how many CPUs others kept busy in each case that was measured, as far as known."""
        measured = (list(outcome.records.values()) for outcome in self._outcomes.values())
        return [records[0].other_cpus for records in measured if records]

    def _leave_out(self, entry: LeftOut) -> NoReturn:
        """Record the entry, and end the test."""
        self.left_out.append(entry)
        if isinstance(entry.reason, Failure):
            pytest.fail(entry.reason)
        pytest.skip(entry.reason)


def replay(benchmark: Any, samples: Iterable[Sample]) -> None:
    """Show pytest-benchmark's timer the samples, one a round."""
    seconds = [sample.device for sample in samples]
    waiting = iter(seconds)

    def run() -> None:
        CLOCK.seconds += next(waiting)

    benchmark.pedantic(run, rounds=len(seconds))
