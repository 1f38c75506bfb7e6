"""What the hot loops can have in flight on a multiprocessor."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.machine_code.compiled import Compiled
from bench.machine_code.in_flight import Flight, Kernel
from bench.machine_code.kernels import HotLoop
from bench.machine_code.loops import Loop
from bench.machine_code.occupancy import Gpu, resident_threads
from bench.machine_code.sass import Function


@dataclass(frozen=True)
class Result:
    """A loop on one architecture."""

    loop: HotLoop
    function: Function
    flight: Flight
    threads: int  # that a multiprocessor holds

    @property
    def bytes_in_flight(self) -> float:
        """Return the bytes in flight on a multiprocessor."""
        return self.flight.pending_bytes * self.threads

    def share_of_copy(self, gpu: Gpu) -> float:
        """Return the share of memory's bandwidth that Little's law allows."""
        return min(1.0, self.bytes_in_flight / gpu.needed)


def is_of_type(loop: HotLoop, kernel: Kernel, found: Loop) -> bool:
    """Return whether a loop of machine code takes 16-bit values apart if it should."""
    unpacks = any(kernel.code[i].opcode.startswith("PRMT") for i in found.body)
    return loop.unpacks in (None, unpacks)


def find_results(loop: HotLoop, compiled: Iterable[Compiled]) -> Iterable[Result]:
    """Yield the results of the loops in machine code that have the loads of a hot loop."""
    for each in compiled:
        function = each.kernel.function
        if loop.is_in(function.name):
            threads = resident_threads(function.registers, each.shared, each.threads, function.architecture)
            for found, flight in each.kernel.find_hot_loops(loop.loads):
                if is_of_type(loop, each.kernel, found):
                    yield Result(loop, function, flight, threads)


def judge(loop: HotLoop, compiled: Sequence[Compiled], architecture: int) -> Result:
    """Return the worst result of a hot loop.

    Raises:
        LookupError: no loop has its loads.
    """
    results = find_results(loop, (each for each in compiled if each.kernel.function.architecture == architecture))
    worst = min(results, key=lambda result: result.bytes_in_flight, default=None)
    if worst is None:
        wanted = ", ".join(f"{count} {opcode}" for opcode, count in loop.loads.items())
        raise LookupError(f"{loop.name}, sm_{architecture}: no loop has a turn with the loads {wanted}, or a multiple")
    return worst
