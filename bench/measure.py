"""Timing side by side: the contenders take turns in one process, and ratios are taken turn by turn."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


def nothing() -> None:
    """The preparation of a contender that needs none."""


@dataclass(frozen=True)
class Contender:
    """Something to time."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = nothing  # before every run, not timed
    bytes_moved: float | None = None  # per run, by the byte count of the algorithm


@dataclass(frozen=True)
class Times:
    """Seconds of each turn, by contender."""

    seconds: dict[str, list[float]]
    bytes_moved: dict[str, float | None]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def gb_per_second(self, name: str) -> float:
        moved = self.bytes_moved[name]
        if moved is None:
            raise ValueError(f"contender {name!r} has no byte count")
        return moved / self.median(name) / 1e9

    def faster(self, name: str, than: str) -> float:
        """How many times as fast ``name`` is: the median over the turns."""
        return statistics.median(b / a for a, b in zip(self.seconds[name], self.seconds[than], strict=True))


def take_turns(contenders: list[Contender], turns: int) -> Times:
    """Times the contenders in turn, after one turn that does not count."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(turns + 1):
        for contender in contenders:
            contender.prepare()
            start = time.perf_counter()
            contender.run()
            if turn:
                seconds[contender.name].append(time.perf_counter() - start)
    return Times(seconds, {contender.name: contender.bytes_moved for contender in contenders})
