"""How many of the machine's CPUs others keep busy while we measure, from Linux's /proc/stat."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

STAT = Path("/proc/stat")
SHORTEST = 0.2  # seconds: /proc/stat counts hundredths
BUSY = 0.1  # of all CPUs: beyond that, times are too long
WAIT = 0.5  # seconds to look at others before measuring begins


def busy_seconds(stat: Path = STAT) -> float | None:
    """Return for how long all CPUs together have worked since the machine started. None where that is not known.

    What a hypervisor has taken for other machines counts too: their work slows ours down as well.
    """
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class OtherLoad:
    """Count how many CPUs others keep busy, from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def cpus(self) -> float | None:
        """Return the mean number of CPUs since then. None if that is not known, or if it was too short ago."""
        seconds, busy, own = (
            None if now is None or then is None else now - then
            for now, then in zip(self._now(), self._start, strict=True)
        )
        if busy is None or seconds is None or own is None or seconds < SHORTEST:
            return None
        return max(0.0, busy - own) / seconds

    @staticmethod
    def _now() -> tuple[float, float | None, float]:
        return time.perf_counter(), busy_seconds(), time.process_time()


def look_at_others() -> float | None:
    """Wait for a moment; return how many CPUs others kept busy meanwhile. None if that is not known."""
    load = OtherLoad()
    time.sleep(WAIT)
    return load.cpus()


def is_busy(cpus: float | None) -> bool:
    """Return whether others keep so many CPUs busy that times mean little."""
    return cpus is not None and cpus > BUSY * cpu_count()


def cpu_count() -> int:
    return os.cpu_count() or 1


def warn_before(cpus: float | None) -> str:
    """Return a warning to print before measuring begins. Empty if the machine is idle."""
    if not is_busy(cpus):
        return ""
    return (
        f"THE MACHINE IS BUSY: others use {cpus:.1f} of its {cpu_count()} CPUs (load average {os.getloadavg()[0]:.1f}):"
        " times will be too long, and ratios may be wrong."
    )


def warn_after(of_cases: Sequence[float | None]) -> str:
    """Return a warning to print at the end, from what others used in each case. Empty if the machine was idle."""
    busy = [cpus for cpus in of_cases if cpus is not None and is_busy(cpus)]
    if not busy:
        return ""
    return (
        f"THE MACHINE WAS BUSY in {len(busy)} of {len(of_cases)} cases: others used up to {max(busy):.1f} of its "
        f"{cpu_count()} CPUs. Measure again when it is idle: times are too long, and ratios may be wrong."
    )
