"""``python -m bench.tuning.cache_model``: model which second reads of gradients the L2 cache serves.

A step of MTAdam reads each gradient for its norm, and again for the update. The model replays the order in which the
CUDA kernels' blocks take that work, against a cache that evicts what was used least recently. It is no measurement:

* Blocks take their work one after the other. On a GPU hundreds of them run at the same time.
* The gradients of a chunk are one entry. The cache is fully associative, and nothing else uses it.
"""

import argparse
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.harness.byte_model import FLOAT, mtadam_state, mtadam_step
from bench.report.tables import Row, markdown
from bench.workloads.shapes import param_shapes
from mtadam_fused.backends.cuda import AHEAD_ELEMENTS, launch_order, most_elements
from mtadam_fused.backends.device import chunk_elements, chunk_table

PAGE = Path(__file__).parents[1] / "results" / "tuning" / "cache_model.md"
MIB = 2**20
CAPACITIES = (30 * MIB, 45 * MIB)  # an estimate of what an H100 can use of its 50 MiB, and a larger cache
WORKLOADS, TERMS = ("resnet50", "bert_base"), (2, 4, 10)
MAX_ADDRESSES = 4060  # kMaxAddresses of csrc/cuda/device.cuh: a launch takes rows with so many gradients

TITLE = "# Second reads of gradients that the L2 cache serves: a model, not a measurement"
LEGEND = f"""A cell is the share of the second reads of gradients that hit and, in brackets, the share of all bytes of a
float32 step that this saves. A chunk has at most so many elements. Evict-first: a second read frees its place.
Three launches update from the end. One launch has an `AHEAD_ELEMENTS` of 2^21 to 2^23, and updates the chunks of a row
in ascending or descending order. The backend has 2^{AHEAD_ELEMENTS.bit_length() - 1}, descending, evict-first.

Parameters and moments take no room in the cache, as their evict-first loads and stores ask for. In the columns "state
stays" they take as much as they have bytes.

Made by `python -m bench.tuning.cache_model`.
"""


@dataclass(frozen=True)
class Schedule:
    """How a step orders its work.

    Attributes:
        window: AHEAD_ELEMENTS of the one-launch step; None for three launches, whose update runs from the end.
        descending: the one-launch step updates the chunks of a row from the last to the first.
        evict_first: the second read of a gradient frees its place in the cache.
    """

    window: int | None
    descending: bool
    evict_first: bool

    def __str__(self) -> str:
        """Describe it in a cell."""
        last = ["evict-first"] if self.evict_first else []
        if self.window is None:
            return ", ".join(["three launches", *last])
        exponent = self.window.bit_length() - 1
        return ", ".join([f"one launch, 2^{exponent}", "descending" if self.descending else "ascending", *last])


SCHEDULES = (
    *(Schedule(None, True, evict_first) for evict_first in (False, True)),
    *(Schedule(2**23, descending, evict_first) for evict_first in (False, True) for descending in (False, True)),
    *(Schedule(window, descending, True) for window in (2**22, 2**21) for descending in (False, True)),
    Schedule(2**21, True, False),
)


class Cache:
    """A cache of so many bytes that evicts what was put into it first."""

    def __init__(self, capacity: int) -> None:
        self._room = capacity
        self._sizes: OrderedDict[int, int] = OrderedDict()

    def put(self, key: int, size: int) -> None:
        """Put in what was not there, and evict the oldest until all fits."""
        self._sizes[key] = size
        self._room -= size
        while self._room < 0:
            self._room += self._sizes.popitem(last=False)[1]

    def take(self, key: int) -> bool:
        """Take something out; return whether it was there."""
        size = self._sizes.pop(key, 0)
        self._room += size
        return size > 0


@dataclass(frozen=True)
class Replay:
    """The work of a step in order: the number of a chunk for its norms, the bitwise complement for its update."""

    order: Sequence[int]
    elements: Sequence[int]  # of each chunk

    def hit_share(self, terms: int, capacity: int, *, evict_first: bool, state_stays: bool = False) -> float:
        """Return the share of the second reads of gradients that hit.

        Args:
            terms: K.
            capacity: bytes of the cache.
            evict_first: see :class:`Schedule`.
            state_stays: parameters and moments take room in the cache too, though the kernels stream them.
        """
        cache, hits = Cache(capacity), 0
        for work in self.order:
            chunk = work if work >= 0 else ~work
            size = FLOAT * terms * self.elements[chunk]
            if work < 0:
                hits += self.elements[chunk] * cache.take(chunk)
            if work >= 0 or not evict_first:
                cache.put(chunk, size)
            if work < 0 and state_stays:
                cache.put(work, (FLOAT + mtadam_state(terms)) * self.elements[chunk])
        return hits / sum(self.elements)


def make_replay(numels: Iterable[int], terms: int, schedule: Schedule) -> Replay:
    """Return the work of a step on parameters of so many elements."""
    sizes = torch.tensor(list(numels))
    limit = () if schedule.window is None else (most_elements(terms, schedule.window),)
    chunks = chunk_table(sizes, chunk_elements(int(sizes.sum()), *limit))
    rows, at_once = chunks[:, 0].contiguous(), MAX_ADDRESSES // terms
    if schedule.window is not None:
        order = launch_order(rows, at_once, descending=schedule.descending).tolist()
    else:
        order = three_launches(rows, at_once)
    return Replay(order, (chunks[:, 2] - chunks[:, 1]).tolist())


def three_launches(chunk_rows: torch.Tensor, rows_at_once: int) -> list[int]:
    """Return the order of work in three launches: all norms, then all updates from the end."""
    order: list[int] = []
    for launch in torch.arange(len(chunk_rows)).split((chunk_rows // rows_at_once).bincount().tolist()):
        order += [*launch.tolist(), *(~launch.flip(0)).tolist()]
    return order


def row(numels: Sequence[int], terms: int, schedule: Schedule) -> Row:
    """Return the line of a schedule: what hits, and what part of the step's bytes that is."""
    replay = make_replay(numels, terms, schedule)
    cells = {"K": str(terms), "order": str(schedule), "chunk": str(max(replay.elements))}
    of_step = FLOAT * terms / mtadam_step(terms, FLOAT)  # the second reads
    for stays in (False, True):
        for capacity in CAPACITIES:
            share = replay.hit_share(terms, capacity, evict_first=schedule.evict_first, state_stays=stays)
            column = f"{capacity // MIB} MiB" + (", state stays" if stays else "")
            cells[column] = f"{100 * share:.0f} % ({100 * share * of_step:.1f} %)"
    return cells


def rows(workload: str, terms: int) -> list[Row]:
    """Return the lines of all schedules."""
    numels = [math.prod(shape) for shape in param_shapes(workload)]
    return [row(numels, terms, schedule) for schedule in SCHEDULES]


def page() -> str:
    """Return the page of all tables."""
    assumed = (__doc__ or "").partition("\n\n")[2]
    tables = [
        f"## {workload}\n\n{markdown([line for terms in TERMS for line in rows(workload, terms)])}\n"
        for workload in WORKLOADS
    ]
    return "\n".join([f"{TITLE}\n", assumed, LEGEND, *tables])


def main() -> None:
    """Print the page, and write it."""
    parser = argparse.ArgumentParser(description="Model which second reads of gradients the L2 cache serves.")
    parser.add_argument("--out", type=Path, default=PAGE, help=f"file to write ({PAGE})")
    out = parser.parse_args().out
    text = page()
    print(text)
    out.write_text(text)


if __name__ == "__main__":
    main()
