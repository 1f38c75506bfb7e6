"""In each framework two processes, each with half of every batch, make the steps of one that has all of it."""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mtadam_fused import BalancedAdam
from oracles.tolerances import TooFar, check_values, same
from tests.integrations.ddp_worker import FSDP2_ON_CPU, MAX_NORM, PARTS, PROCESSES, ROWS, Heads, Rows, losses_of
from tests.support.processes import run_all

RUNS = [
    ("lightning", "automatic"),
    ("lightning", "manual"),
    pytest.param("lightning", "sharded", marks=pytest.mark.skipif(not FSDP2_ON_CPU, reason="needs torch 2.11")),
    ("accelerate", "loop"),
    ("transformers", "trainer"),
]


@pytest.fixture(scope="module")
def results_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """Return a function that runs ddp_worker.py with a framework, once, and returns what each process has found."""

    @cache
    def run(framework: str) -> list[dict[str, Any]]:
        if importlib.util.find_spec(framework) is None:
            pytest.skip(f"{framework} is not installed")
        folder = tmp_path_factory.mktemp(framework)
        run_all(PROCESSES, folder, "tests.integrations.ddp_worker", framework, str(folder))
        return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]

    return run


def train_alone(rows: slice = slice(None), parts: int = PARTS, max_norm: float = MAX_NORM) -> list[Tensor]:
    """Train in this process, without a framework, on ``rows`` of each batch."""
    heads = Heads()
    optimizer = BalancedAdam(heads.parameters(), lr=0.1)
    for i, batch in enumerate(Rows().x.split(ROWS)):
        x = batch[rows]
        optimizer.backward({name: loss / parts for name, loss in losses_of(heads(x), x).items()})
        if (i + 1) % parts == 0:
            optimizer.clip_grad_norm_(max_norm)
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in heads.parameters()]


def check(params: list[Tensor], expected: list[Tensor]) -> None:
    for actual, wanted in zip(params, expected, strict=True):
        check_values(actual, wanted.numpy(), 1e-10)


@pytest.mark.parametrize(("framework", "run"), RUNS)
def test_two_processes_make_the_steps_of_one(
    framework: str, run: str, results_of: Callable[[str], list[dict[str, Any]]]
) -> None:
    first, second = (of_process[run] for of_process in results_of(framework))
    assert same(first, second)
    check(first, train_alone())
    for other in (train_alone(slice(2)), train_alone(parts=1), train_alone(max_norm=1e9)):
        with pytest.raises(TooFar):
            check(first, other)


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_an_optimizer_without_a_group_is_refused(
    framework: str, results_of: Callable[[str], list[dict[str, Any]]]
) -> None:
    for of_process in results_of(framework):
        error = of_process["without a group"]
        assert "this is one of 2 processes" in error
        assert "make the optimizer with process_group=torch.distributed.group.WORLD" in error
