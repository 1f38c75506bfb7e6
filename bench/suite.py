"""The way of the measurements into pytest-benchmark: contenders take turns, and each is a benchmark of its own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from devices import Device, Sample
from measure import Budget
from records import LeftOut, Record, as_info


@dataclass(frozen=True)
class Outcome:
    """What the contenders of one case did."""

    records: dict[str, Record] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # contenders, and why
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
    once; pytest-benchmark then gets each contender's samples as a benchmark of its own."""

    def __init__(self, device: Device, budget: Budget) -> None:
        self.device = device
        self.budget = budget
        self.records: list[Record] = []
        self.left_out: list[LeftOut] = []
        self._outcomes: dict[object, Outcome] = {}

    def report(self, request: pytest.FixtureRequest, measure: Callable[[str, "Suite"], Outcome]) -> None:
        """Hands what the test's contender did in the test's case to pytest-benchmark; skips if it took no part.

        Args:
            measure: measures a case, given by its id.
        """
        case, contender = (request.node.callspec.params[name] for name in ("case", "contender"))
        if (measure, case) not in self._outcomes:
            self._outcomes[measure, case] = Outcome(failed=True)  # unless it returns
            self._outcomes[measure, case] = measure(case, self)
        outcome = self._outcomes[measure, case]
        if outcome.failed:
            pytest.fail("the case failed with its first contender")
        if reason := outcome.left_out.get(contender):
            self.left_out.append(LeftOut(request.module.GROUP, case, contender, reason))
            pytest.skip(reason)
        benchmark = request.getfixturevalue("benchmark")
        benchmark.group = f"{request.module.GROUP} {case}"
        benchmark.extra_info |= as_info(outcome.records[contender])
        self.records.append(outcome.records[contender])
        replay(benchmark, outcome.samples[contender])


def replay(benchmark: Any, samples: Iterable[Sample]) -> None:
    """Lets pytest-benchmark's timer see the samples, one a round."""
    seconds = [sample.device for sample in samples]
    waiting = iter(seconds)

    def run() -> None:
        CLOCK.seconds += next(waiting)

    benchmark.pedantic(run, rounds=len(seconds))
