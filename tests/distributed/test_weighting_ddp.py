"""Weightings inside what DistributedDataParallel wraps: two processes agree on what was learned and measured."""

import json
from pathlib import Path

import pytest

from tests.support.processes import run_all


def train(folder: Path, place: str) -> list[list[list[float]]]:
    """Return p, the initial losses and their counts, and ReLoBRaLo's weights and seed, of both processes."""
    (folder / place).mkdir()
    outputs = run_all(2, folder / place, "tests.distributed.weighting_worker", place)
    return [json.loads(output.splitlines()[-1]) for output in outputs]  # gloo of torch 2.8 prints before


def test_inside_it_processes_agree(tmp_path: Path) -> None:
    first, second = train(tmp_path, "inside")
    assert first == second
    assert first[1:3] == [[1.0, 4.0], [1, 1]]  # the first process's losses
    alone, other = train(tmp_path, "outside")
    assert all(alone[i] != other[i] for i in (0, 3, 4))
    assert other[1] == [pytest.approx(4.0), pytest.approx(16.0)]
