"""The model of the L2 cache, against cases small enough to follow by hand."""

import re
from pathlib import Path

import pytest
import torch

from bench.report.tables import markdown
from bench.tuning.cache_model import (
    LEGEND,
    MAX_ADDRESSES,
    PAGE,
    Cache,
    Replay,
    Schedule,
    make_replay,
    rows,
    three_launches,
)

ROOT = Path(__file__).parents[2]
ASCENDING, DESCENDING = [0, 1, 2, 3, ~0, ~1, ~2, ~3], [0, 1, 2, 3, ~3, ~2, ~1, ~0]
CHUNK = 8 * 4 * 2  # bytes of the gradients of eight elements and two terms


def hits(order: list[int], chunks: float, *, evict_first: bool = False, state_stays: bool = False) -> float:
    """Return how many of four second reads hit, in a cache for the gradients of so many chunks."""
    replay = Replay(order, [8] * 4)
    return 4 * replay.hit_share(2, int(chunks * CHUNK), evict_first=evict_first, state_stays=state_stays)


def test_the_oldest_is_evicted() -> None:
    cache = Cache(10)
    for key, size in ((1, 4), (2, 4), (3, 4)):
        cache.put(key, size)
    assert [cache.take(key) for key in (1, 2, 3, 3)] == [False, True, True, False]
    cache.put(4, 11)
    assert not cache.take(4)
    cache.put(5, 10)
    assert cache.take(5)


@pytest.mark.parametrize("evict_first", [False, True])
@pytest.mark.parametrize("order", [ASCENDING, DESCENDING])
def test_a_cache_for_all_hits_always_and_one_for_less_than_a_chunk_never(order: list[int], evict_first: bool) -> None:
    assert hits(order, 4, evict_first=evict_first) == 4
    assert hits(order, 0.9, evict_first=evict_first) == 0


def test_ascending_updates_find_nothing_in_a_cache_for_less_than_all_unless_each_frees_its_place() -> None:
    assert hits(ASCENDING, 3) == 0  # each miss evicts the next one to be read
    assert hits(ASCENDING, 3, evict_first=True) == 3  # the first was evicted, and is not kept


def test_descending_updates_find_what_fits() -> None:
    assert [hits(DESCENDING, chunks) for chunks in (1, 2, 3)] == [1, 2, 3]
    assert [hits(DESCENDING, chunks, evict_first=True) for chunks in (1, 2, 3)] == [1, 2, 3]


def test_a_state_that_stays_takes_room() -> None:
    """A chunk's state has twice the bytes of its gradients: parameter, first moment and two second moments."""
    assert hits(DESCENDING, 6, state_stays=True, evict_first=True) == 3  # the state of 3, 2 and 1 evicts 0
    assert hits(DESCENDING, 6, state_stays=True) == 2  # with the gradients of 3 and 2, their state evicts 0 and 1
    assert hits(DESCENDING, 12, state_stays=True) == 4


def test_unequal_chunks_count_by_their_elements() -> None:
    replay = Replay([0, 1, ~1, ~0], [24, 8])
    assert replay.hit_share(1, 32, evict_first=True) == 0.25
    assert replay.hit_share(1, 128, evict_first=True) == 1


def test_three_launches_of_some_rows_after_the_other() -> None:
    assert three_launches(torch.tensor([0, 0, 1, 2]), 2) == [0, 1, 2, ~2, ~1, ~0, 3, ~3]


@pytest.mark.parametrize(("terms", "chunk"), [(2, 4096), (4, 2048), (10, 1024)])
def test_the_order_is_that_of_the_backend(terms: int, chunk: int) -> None:
    numels = [10_000_000, 3, 10_000_000]
    replay = make_replay(numels, terms, Schedule(2**21, descending=True, evict_first=True))
    first = -(-numels[0] // chunk)
    assert replay.elements[0] == chunk
    assert sum(replay.elements) == sum(numels)
    assert replay.order.index(~(first - 1)) == first + 256  # 256 more norms come between
    assert replay.order[first + 256 + 1] == ~(first - 2)
    assert sorted(replay.order) == [*range(-len(replay.elements), len(replay.elements))]
    assert make_replay(numels, terms, Schedule(None, True, True)).elements[0] == 8192


def test_a_launch_takes_as_many_rows_as_the_kernels_do() -> None:
    header = (ROOT / "csrc" / "cuda" / "device.cuh").read_text()
    assert [str(MAX_ADDRESSES)] == re.findall(r"kMaxAddresses = (\d+);", header)


def test_the_page_is_what_the_model_gives() -> None:
    text = PAGE.read_text()
    assert LEGEND in text
    for workload, terms in (("resnet50", 4), ("bert_base", 2)):
        lines = markdown(rows(workload, terms)).splitlines()[2:]
        assert len(lines) > 1
        assert "\n".join(lines) in text
