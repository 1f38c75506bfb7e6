"""Rows cut into chunks for the GPU backends."""

import pytest
import torch

from mtadam_fused.backends.cuda import AHEAD, launch_order, most_elements
from mtadam_fused.backends.device import chunk_elements, chunk_table
from tests.support.cases import DTYPES, Case, CombinedCase
from tests.support.triton_interpreter import INTERPRETED


def test_small_models_have_small_chunks() -> None:
    assert [chunk_elements(n) for n in (0, 1_000_000, 5_000_000, 25_000_000, 2**40)] == [1024, 1024, 2048, 8192, 8192]
    assert [chunk_elements(2**40, most) for most in (0, 3000, 4096, 2**40)] == [1024, 2048, 4096, 8192]


@pytest.mark.parametrize("numels", [[], [0], [1], [0, 3, 0, 0, 2049, 1024, 0], [1023, 1024, 1025, 8192]])
def test_chunks_are_the_rows_cut_in_order(numels: list[int]) -> None:
    expected: list[list[int]] = []
    for row, numel in enumerate(numels):
        for begin in range(0, max(numel, 1), 1024):
            expected.append([row, begin, min(begin + 1024, numel), len(expected)])
    assert chunk_table(torch.tensor(numels, dtype=torch.int64), 1024).tolist() == expected


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("ahead", [0, 2, 5, 256])
@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 9])
def test_one_launch_takes_updates_after_the_norms_of_their_row(
    rows_at_once: int, ahead: int, descending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtadam_fused.backends.cuda.AHEAD", ahead)
    rows = [0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, 6]
    order = launch_order(torch.tensor(rows), rows_at_once, descending=descending).tolist()
    launches = [[c for c, row in enumerate(rows) if row // rows_at_once == n] for n in range(7)]
    for chunks in filter(None, launches):
        queue, order = order[: 2 * len(chunks)], order[2 * len(chunks) :]
        norms, updates = [work for work in queue if work >= 0], [~work for work in queue if work < 0]
        assert norms == chunks
        assert updates == sorted(chunks, key=lambda c: (rows[c], -c if descending else c))
        for chunk in chunks:
            needed = max(c for c in chunks if rows[c] == rows[chunk])
            before = sum(work >= 0 for work in queue[: queue.index(~chunk)])
            assert before == min(chunks.index(needed) + 1 + ahead, len(chunks))
    assert order == []


def test_one_launch_updates_a_row_from_its_end() -> None:
    order = launch_order(torch.tensor([0, 0, 0, 1, 1]), rows_at_once=9).tolist()
    assert order == [0, 1, 2, 3, 4, ~2, ~1, ~0, ~4, ~3]


def test_chunks_of_one_launch_leave_their_gradients_in_the_window() -> None:
    assert [AHEAD * terms * most_elements(terms, 2**21) for terms in (1, 2, 4, 8)] == [2**21] * 4
    assert AHEAD * 10 * (most_elements(10, 2**21) + 1) > 2**21 >= AHEAD * 10 * most_elements(10, 2**21)


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton, and no GPU")
@pytest.mark.parametrize("elements", [1024, 8192])
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_takes_chunks_of_any_size(dtype: torch.dtype, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtadam_fused.backends.device.LEAST_ELEMENTS", elements)
    contiguous = ("contiguous",) * 2
    case = Case(dtype, ((2 * 8192 + 5,), (3000,)), contiguous, contiguous, terms=3, seed=1, steps=2)
    case.run("triton")
    CombinedCase.like(case).run("triton")
