"""The demo, in the small: it runs, leaves its tables, numbers and pictures, and trains with what it says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.demo.data import (
    BATCH,
    batches,
    draw_decades,
    draw_uniform,
    load_images,
    prior_losses,
    split,
)
from bench.demo.report import choose
from bench.demo.strategies import ADAM, RULES, STRATEGIES, Positive, Strategy
from bench.demo.training import Run, Training
from bench.workloads.digits import CLASSES, class_losses, make_network
from mtadam_fused.weighting import RealTimeLoss

ROOT = Path(__file__).parents[2]


def run_demo(out: Path, *options: str) -> str:
    """Return what the demo prints."""
    command = [sys.executable, "-m", "bench.demo", "--quick", "--out", str(out), *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_quick_demo(tmp_path: Path) -> None:
    printed = run_demo(tmp_path)
    for method in ("Adam, balanced sum", "Adam, U(0, 1000)", "MTAdam, U(0, 1000)", "BalancedAdam, 10^U(-3, 3)"):
        assert method in printed
        assert method in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "demo.json").read_text())["verdict"] in printed
    assert " seconds" in (tmp_path / "short.md").read_text()
    written = (tmp_path / "table.md").read_text()
    (tmp_path / "table.md").unlink()
    assert run_demo(tmp_path, "--report") == printed
    assert (tmp_path / "table.md").read_text() == written
    assert is_picture(tmp_path / "curves.png")
    assert is_picture(tmp_path / "scales.png")


def test_quick_demo_of_all_strategies(tmp_path: Path) -> None:
    printed = run_demo(tmp_path, "--strategy", "all", "--epochs", "1")
    results = json.loads((tmp_path / "strategies.json").read_text())
    for strategy in STRATEGIES:
        assert strategy.name in printed
        assert strategy.name in (tmp_path / "strategies.md").read_text()
        cost = results["costs"][strategy.name]
        memory = cost["passes"], cost["state_bytes"], cost["gradient_bytes"]
        # By the papers' formulas: two moments of 4 bytes, or MTAdam's 4K + 4; one gradient, or K.
        one_pass = {"GradNorm", "PCGrad, last layer"}
        per_term = {"MTAdam": (10, 44, 40)} | dict.fromkeys({"BalancedAdam", *RULES} - one_pass, (10, 8, 40))
        assert memory == per_term.get(strategy.method, (1, 8, 4))
        assert cost["time"] > 0
    assert results["costs"]["Adam, U(0, 1000)"]["time"] == 1
    assert run_demo(tmp_path, "--strategy", "all", "--report") == printed
    assert is_picture(tmp_path / "strategies.png")


def test_baseline_is_adam_on_the_sum() -> None:
    images, steps = load_images(), 4
    training = Training(images, ADAM, lr=0.01, seed=3)
    for _, batch in zip(range(steps), training.epoch(), strict=False):
        training.step(batch)

    network = make_network(images.pixels.shape[-1], seed=3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    order = batches(split(images.labels, seed=3)[0], torch.Generator().manual_seed(3))
    for _, batch in zip(range(steps), order, strict=False):
        optimizer.zero_grad()
        losses = class_losses(network(images.pixels[batch]), images.labels[batch], draw_uniform(3))
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
    for ours, theirs in zip(training.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def train_last_layer(strategy: Strategy) -> Tensor:
    """Return the last layer's weights after two steps."""
    training = Training(load_images(), strategy, lr=0.01, seed=0)
    for _, batch in zip(range(2), training.epoch(), strict=False):
        training.step(batch)
    return training.network.get_submodule("linear").get_parameter("weight").detach()


# DWA weights by epochs, and weights that are learned by an Adam of their own all begin to move by its lr.
SAME_AT_FIRST = {("DWA", "Adam"), ("IMTLL", "KendallUncertainty")}


def test_strategies_take_different_steps() -> None:
    weights = {strategy: train_last_layer(strategy) for strategy in STRATEGIES}
    assert torch.equal(weights[ADAM], train_last_layer(ADAM))
    for i, first in enumerate(STRATEGIES):
        assert weights[first].isfinite().all()
        for second in STRATEGIES[:i]:
            is_same = bool((weights[first] - weights[second]).abs().max() <= 1e-5)
            pair = (first.method, second.method)
            assert is_same == (pair in SAME_AT_FIRST and second.weights == first.weights), (first.name, second.name)


def test_prior_losses_are_those_of_the_frequencies() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    weights = [1.0, 10.0, 100.0, *[0.0] * (CLASSES - 3)]
    expected = {"0": 2.0794415, "1": 13.8629436, "2": 47.0003629}  # weight * log(8 / count)
    assert prior_losses(labels, weights) == pytest.approx(expected)


@pytest.mark.parametrize(("losses", "gradients"), [([4.0, 0.0], [0.25, 0.0]), ([0.0, 0.0], [1.0, 1.0])])
def test_real_time_loss_leaves_out_what_has_come_to_zero(losses: list[float], gradients: list[float]) -> None:
    leaves = torch.tensor(losses, requires_grad=True)
    Positive(RealTimeLoss())(dict(enumerate(leaves))).backward()
    assert leaves.grad is not None
    assert leaves.grad.tolist() == gradients


def test_the_learning_rate_is_chosen_on_validation_images() -> None:
    runs = {
        ("A", 0.1): [Run([0.9, 0.5], [0.6, 0.2]), Run([0.7, 0.5], [0.4, 0.3])],
        ("A", 1.0): [Run([0.8, 0.6], [0.9, 0.1]), Run([0.7, 0.6], [0.9, 0.1])],
        ("B", 9.0): [Run([1.0, 1.0], [1.0, 1.0])],
    }
    first, last = choose(runs, "A", epochs=1), choose(runs, "A", epochs=2)
    assert (first.lr, first.test) == (0.1, [0.6, 0.4])
    assert (last.lr, last.test) == (1.0, [0.1, 0.1])


def test_an_epoch_has_full_batches_of_training_images() -> None:
    training = Training(load_images(), ADAM, lr=0.01, seed=0)
    seen = torch.cat(list(training.epoch()))
    assert len(seen) % BATCH == 0
    assert set(seen.tolist()) <= set(training.training.tolist())
    assert not set(seen.tolist()) & set(torch.cat([training.validation, training.test]).tolist())


def test_weights_over_decades_are_spread() -> None:
    logs = np.log10([draw_decades(seed) for seed in range(200)])
    assert -3 <= logs.min() < -2.9 < 2.9 < logs.max() <= 3
    assert abs(logs.mean()) < 0.15
    assert draw_decades(0) != draw_decades(1)
