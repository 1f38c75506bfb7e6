"""Time side by side: the contenders take turns in one process, and ratios are taken turn by turn."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bench.harness.devices import Device, Sample
from bench.harness.other_load import OtherLoad

# Make the step of a contender in float64, from parameters and [K][parameters] gradients.
Oracle = Callable[[list[nn.Parameter], list[list[Tensor]]], object]


class LeftOutError(Exception):
    """The reason why a contender does not take part in a case."""


class Failure(str):
    """The reason why a contender that should take part in a case does not: it is left out, and the run fails."""


def summarize_error(error: Exception) -> str:
    """Return the kind of the error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def do_nothing() -> None:
    """Prepare a contender that needs no preparation."""


@dataclass(frozen=True)
class Contender:
    """Something to time."""

    name: str
    run: Callable[[], object]
    params: Sequence[Tensor] = ()  # what it changes
    prepare: Callable[[], object] = do_nothing  # before every run, not timed
    bytes_moved: float | None = None  # per run, by the byte model
    state: Mapping[Any, Any] = field(default_factory=dict)  # the optimizer's
    oracle: Oracle | None = None  # makes the expected first run; None if there is none
    exact: bool = False  # whether it must agree with that to rounding, as MTAdam must in the tests
    rounding: float = 0.0  # of the gradients, as a share, where their sums cancel
    keeps: object = None  # what has to live as long as ``run`` is called


@dataclass(frozen=True)
class Budget:
    """The time for which contenders take turns."""

    least: int  # turns
    most: int
    seconds: float  # after which no turn starts, beyond the least
    share: float = 1.0  # of the device's limits for slow contenders


FULL = Budget(least=5, most=25, seconds=5.0)
QUICK = Budget(least=3, most=15, seconds=0.5, share=0.2)


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(median, low, high)


@dataclass(frozen=True)
class Times:
    """The samples of each turn, by contender."""

    samples: dict[str, list[Sample]]
    other_cpus: float | None = None  # that others kept busy meanwhile, as far as known

    def device(self, name: str) -> list[float]:
        """Return the seconds on the device, turn by turn."""
        return [sample.device for sample in self.samples[name]]

    def host(self, name: str) -> list[float]:
        """Return the seconds of the host, turn by turn."""
        return [sample.host for sample in self.samples[name]]


def speedup(seconds: Sequence[float], than: Sequence[float]) -> Quartiles:
    """Return how many times as fast as ``than`` it is, turn by turn."""
    return quartiles([b / a for a, b in zip(seconds, than, strict=True)])


def take_turns(device: Device, contenders: Sequence[Contender], budget: Budget) -> Times:
    """Time the contenders in turn, after one turn that does not count."""
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    load = OtherLoad()
    start, turns = time.perf_counter(), -1
    while turns < budget.least or (turns < budget.most and time.perf_counter() - start < budget.seconds):
        turns += 1
        for contender in contenders:
            sample = device.time(contender.prepare, contender.run)
            if turns:
                samples[contender.name].append(sample)
    return Times(samples, load.cpus())


def iter_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested mappings and sequences, as in an optimizer's state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from iter_tensors(inner)
