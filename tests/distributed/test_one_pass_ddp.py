"""One backward pass over two processes: the steps that one process would make on both batches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.one_pass_worker import gram_seen, train, train_on_features
from tests.support.processes import run_all


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("one_pass")
    run_all(2, folder, "tests.distributed.one_pass_worker", str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["fixed", "GradNorm"])
def test_same_training_as_alone(results: list[dict[str, Any]], name: str) -> None:
    alone = train(name, "per_term", [0, 1], None)
    for of_rank in results:
        for kind in (name, f"{name} per term"):
            for p, q in zip(of_rank["trained"][kind], alone, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    half = train(name, "per_term", [0], None)
    assert any((p - q).abs().max() > 1e-6 for p, q in zip(half, alone, strict=True))


def test_features_of_a_sharded_network(results: list[dict[str, Any]]) -> None:
    alone = train_on_features([0, 1], None, sharded=False)
    for of_rank in results:
        for p, q in zip(of_rank["trained"]["sharded"], alone, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    half = train_on_features([0], None, sharded=False)
    assert any((p - q).abs().max() > 1e-6 for p, q in zip(half, alone, strict=True))


def test_all_use_the_first_process_s_weights(results: list[dict[str, Any]]) -> None:
    alone = train("drawn", "per_term", [0, 1], None)
    for of_rank in results:
        for p, q in zip(of_rank["trained"]["drawn"], alone, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("of", ["features", "parameters"])
def test_the_rule_sees_the_mean_loss(results: list[dict[str, Any]], of: str) -> None:
    alone = gram_seen([0, 1], None, features=of == "features")
    for of_rank in results:
        torch.testing.assert_close(of_rank["grams"][of], alone, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(gram_seen([0], None, features=of == "features"), alone, rtol=1e-3)
