"""Timing side by side: the contenders take turns in one process, and ratios are taken turn by turn."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bench.harness.devices import Device, Sample

# Makes the step of a contender in float64, from parameters and [K][parameters] gradients.
Oracle = Callable[[list[nn.Parameter], list[list[Tensor]]], object]


class LeftOutError(Exception):
    """Why a contender does not take part in a case."""


class Failure(str):
    """Why a contender that should take part in a case does not: it is left out, and the run fails."""


def in_a_line(error: Exception) -> str:
    """The kind of the error and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def nothing() -> None:
    """The preparation of a contender that needs none."""


@dataclass(frozen=True)
class Contender:
    """Something to time."""

    name: str
    run: Callable[[], object]
    params: Sequence[Tensor] = ()  # what it changes
    prepare: Callable[[], object] = nothing  # before every run, not timed
    bytes_moved: float | None = None  # per run, by the byte model
    state: Mapping[Any, Any] = field(default_factory=dict)  # the optimizer's
    oracle: Oracle | None = None  # what its first run must have done; None where nothing says
    exact: bool = False  # whether it must agree with that to rounding, as the tests ask of MTAdam
    keeps: object = None  # what has to live as long as ``run`` is called


@dataclass(frozen=True)
class Budget:
    """How long contenders take turns."""

    least: int  # turns
    most: int
    seconds: float  # after which no turn starts, beyond the least
    share: float = 1.0  # of the device's limits for slow contenders


FULL = Budget(least=5, most=25, seconds=5.0)
QUICK = Budget(least=5, most=15, seconds=0.5, share=0.2)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Times:
    """The samples of each turn, by contender."""

    samples: dict[str, list[Sample]]

    def device(self, name: str) -> list[float]:
        """Seconds on the device, turn by turn."""
        return [sample.device for sample in self.samples[name]]

    def host(self, name: str) -> list[float]:
        """Seconds of the host, turn by turn."""
        return [sample.host for sample in self.samples[name]]


def faster(seconds: Sequence[float], than: Sequence[float]) -> Spread:
    """How many times as fast as ``than``, turn by turn."""
    return spread([b / a for a, b in zip(seconds, than, strict=True)])


def take_turns(device: Device, contenders: Sequence[Contender], budget: Budget) -> Times:
    """Times the contenders in turn, after one turn that does not count."""
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    start, turns = time.perf_counter(), -1
    while turns < budget.least or (turns < budget.most and time.perf_counter() - start < budget.seconds):
        turns += 1
        for contender in contenders:
            sample = device.time(contender.prepare, contender.run)
            if turns:
                samples[contender.name].append(sample)
    return Times(samples)


def tensors(value: Any) -> Iterator[Tensor]:
    """Those in nested mappings and sequences, as of an optimizer's state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(inner)
