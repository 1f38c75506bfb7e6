"""How many loads of data are in flight during a turn of a loop.

A load is in flight until an instruction waits for its scoreboard. Loads between two such waits take their latency
together; other instructions are taken to cost no time. So a turn of a loop lasts as many latencies as it has waits for
data, and its loads divided by its waits are those in flight on average: the number in Little's law.

Machine code does not tell which way a turn goes through its branches. What it loads is known: each operand of the
kernel once, for some elements. Of the ways with just these loads, the one with the fewest waits counts.
"""

import heapq
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from bench.machine_code.loops import Loop, find_loops, find_successors
from bench.machine_code.sass import Function, Instruction, width_of

MOST_REPEATS = 8  # how often a compiler may unroll a loop, or split an operand

_HINT = re.compile(r"\.(EF|CONSTANT)\b")  # the caching that csrc/cuda/device.cuh asks for where it reads data
_UNPACKS = re.compile(r"PRMT|HADD2|IMAD\.U32|SHF\.L|LOP3\.LUT .*0xffff0000")  # two 16-bit values

Loads = Mapping[str, int]  # opcodes, and how often a turn has each
Counts = tuple[int, ...]  # of loads so far, in the order of the opcodes


@dataclass(frozen=True)
class Flight:
    """What a turn of a loop loads for a thread, in how many waits."""

    loads: int
    bytes: int
    waits: int

    @property
    def pending(self) -> float:
        """Return the loads in flight on average."""
        return self.loads / self.waits

    @property
    def pending_bytes(self) -> float:
        """Return their bytes."""
        return self.bytes / self.waits


class Event(NamedTuple):
    """A load of data, or a wait."""

    scoreboards: int  # bits
    opcode: str = ""  # of a load
    may_be_skipped: bool = False


class Chain(NamedTuple):
    """What happens from one instruction to the next branch, and the place of that."""

    events: tuple[Event, ...]
    last: int


class State(NamedTuple):
    """What has happened in a turn so far."""

    waits: int
    counts: Counts
    pending: int  # scoreboards, as bits


class Kernel:
    """The control flow of a function."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.code = function.code
        self.successors = find_successors(self.code)
        self._hot_loops: dict[tuple[tuple[str, int], ...], list[tuple[Loop, Flight]]] = {}

    @cached_property
    def loops(self) -> list[Loop]:
        return find_loops(self.successors)

    def find_hot_loops(self, loads: Loads) -> list[tuple[Loop, Flight]]:
        """Return the innermost loops that have a turn with these loads, or a multiple, and what is in flight."""
        key = tuple(loads.items())
        if key not in self._hot_loops:
            found: list[tuple[Loop, Flight]] = []
            for loop in self.loops:
                is_inner = not any(inner.body < loop.body for inner, _ in found)
                if is_inner and (flight := Turn(self, loop, loads).measure_least()):
                    found.append((loop, flight))
            self._hot_loops[key] = found
        return self._hot_loops[key]

    def is_data(self, i: int, opcodes: Collection[str]) -> bool:
        """Return whether an instruction loads data, and not an address or a number that all threads share.

        Only data is loaded 16 bytes at a time, or with a hint. Narrower loads must be among the wanted ``opcodes``.
        Those of 8 bytes, as wide as an address, must also be unpacked.
        """
        instruction = self.code[i]
        if not instruction.is_load:
            return False
        if instruction.width > 8 or _HINT.search(instruction.opcode):
            return True
        return instruction.opcode in opcodes and (instruction.width < 8 or self.is_unpacked(i))

    def is_unpacked(self, i: int) -> bool:
        """Return whether the next instruction that names what a load returns takes 16-bit values out of it."""
        result = re.compile(rf"\b{self.code[i].destination}\b")
        later = (f"{each.opcode} {each.operands}" for each in self.code[i + 1 :] if result.search(each.operands))
        return bool(_UNPACKS.match(next(later, "")))


class Turn:
    """One turn of a loop: the search for the way through it with the fewest waits."""

    def __init__(self, kernel: Kernel, loop: Loop, loads: Loads) -> None:
        self.kernel, self.loop, self.loads = kernel, loop, loads
        self.opcodes = tuple(loads)
        self.chains: dict[int, Chain] = {}

    def measure_least(self) -> Flight | None:
        """Return what is in flight if a turn has the loads, or else the least multiple that a turn has."""
        if not {self.kernel.code[i].opcode for i in self.loop.body}.issuperset(self.opcodes):
            return None
        return next(filter(None, map(self.measure, range(1, MOST_REPEATS + 1))), None)

    def measure(self, repeats: int) -> Flight | None:
        """Return what is in flight if a turn has the loads so many times. None if there is no such turn."""
        wanted = tuple(repeats * count for count in self.loads.values())
        end = State(0, wanted, 0)
        for _ in range(3):  # what a turn leaves pending, the next one waits for
            found = self.find_way(wanted, end.pending)
            if found is None:
                return None
            end = found
        size = sum(width_of(opcode) * count for opcode, count in zip(self.opcodes, wanted, strict=True))
        return Flight(sum(wanted), size, end.waits) if end.waits else None

    def find_way(self, wanted: Counts, pending: int) -> State | None:
        """Return the end of a turn with the wanted loads and the fewest waits."""
        queue = [(State(0, (0,) * len(wanted), pending), self.loop.head)]
        seen = set()
        while queue:
            state, place = heapq.heappop(queue)
            if place == self.loop.head and state.counts == wanted:
                return state
            if (key := (place, state.counts, state.pending)) in seen:
                continue
            seen.add(key)
            if place == self.loop.head and any(state.counts):
                continue  # a turn with other loads
            chain = self.chain_from(place)
            for after in self.follow(chain, state):
                if all(made <= most for made, most in zip(after.counts, wanted, strict=True)):
                    for following in self.kernel.successors[chain.last]:
                        if following in self.loop.body:
                            heapq.heappush(queue, (after, following))
        return None

    def follow(self, chain: Chain, state: State) -> set[State]:
        """Return the states that a chain may leave."""
        states = {state}
        for event in chain.events:
            states = {after for before in states for after in self.apply(event, before)}
        return states

    def apply(self, event: Event, state: State) -> Iterator[State]:
        """Yield the states after an event: none after a load that a turn should not have."""
        if not event.opcode:
            # When it ends, all that was pending has arrived.
            yield State(state.waits + 1, state.counts, 0) if state.pending & event.scoreboards else state
            return
        if event.may_be_skipped:
            yield state
        if event.opcode in self.opcodes:
            n = self.opcodes.index(event.opcode)
            counts = (*state.counts[:n], state.counts[n] + 1, *state.counts[n + 1 :])
            yield State(state.waits, counts, state.pending | event.scoreboards)

    def chain_from(self, place: int) -> Chain:
        """Return the chain that begins with an instruction."""
        if place not in self.chains:
            events: list[Event] = []
            last = place
            while True:
                events.extend(self.events_of(last))
                following = self.kernel.successors[last]
                if len(following) != 1 or following[0] == self.loop.head or following[0] not in self.loop.body:
                    break
                (last,) = following
            self.chains[place] = Chain(tuple(events), last)
        return self.chains[place]

    def events_of(self, i: int) -> Iterator[Event]:
        """Yield the wait of an instruction, then its load. AMSGrad's maximum is a load of state that may be skipped."""
        instruction = self.kernel.code[i]
        if instruction.opcode.startswith("DEPBAR"):
            raise NotImplementedError(f"{instruction.opcode} at {instruction.address:#x} waits for some of the loads")
        if instruction.waits:
            yield Event(instruction.waits)
        if self.kernel.is_data(i, self.opcodes):
            may_be_skipped = bool(instruction.predicate) and ".EF" in instruction.opcode
            yield Event(scoreboard_bit(instruction), instruction.opcode, may_be_skipped)


def scoreboard_bit(load: Instruction) -> int:
    """Return the bit of a load's scoreboard.

    Raises:
        ValueError: it has none, so the control bits are not where they should be.
    """
    if load.scoreboard is None:
        raise ValueError(f"the load at {load.address:#x} has no scoreboard: the control bits are elsewhere")
    return 1 << load.scoreboard
