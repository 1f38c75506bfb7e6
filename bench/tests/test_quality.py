"""The study of quality, in the small: it runs, leaves its tables, numbers and pictures, and trains what it says."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.quality.__main__ import parse_options
from bench.quality.burgers import NU, grid, solution
from bench.quality.jets import jet_at, make_network, propagate
from bench.quality.methods import BY_NAME
from bench.quality.problem import Problem, Training
from bench.quality.problems import PROBLEMS
from bench.quality.report import columns, summary, table, verdict
from bench.quality.study import QUICK, Outcome, jobs_of
from bench.quality.training import Job, Result, judge, train

ROOT = Path(__file__).parents[2]


def test_quick_study(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.quality", "--quick", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "README.md").read_text() in run.stdout
    runs = json.loads((tmp_path / "quality.json").read_text())["runs"]
    for name in PROBLEMS:
        file = name.replace(" ", "_").lower()
        text = (tmp_path / f"{file}.md").read_text()
        assert all(column in text for column in columns(PROBLEMS[name]))
        assert (tmp_path / f"{file}.png").read_bytes().startswith(b"\x89PNG")
        assert {r["method"] for r in runs if r["problem"] == name} == set(BY_NAME)
    page, summary = (tmp_path / "README.md").read_text(), (tmp_path / "summary.md").read_text()
    assert all(f"| {name} | " in summary for name in PROBLEMS)
    for path in tmp_path.glob("*.md"):
        path.unlink()
    report = subprocess.run([*command, "--report"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert page in report.stdout
    assert ((tmp_path / "README.md").read_text(), (tmp_path / "summary.md").read_text()) == (page, summary)


def test_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", "--quick", "--problem", "VAE", "digits", "--method", "PCGrad"])
    options = parse_options()
    assert (options.problem, options.method) == (["VAE", "digits"], ["PCGrad"])
    jobs = list(jobs_of(PROBLEMS["VAE"], [BY_NAME["PCGrad"]], QUICK))
    assert {(job.problem, job.method, job.lr) for job in jobs} == {("VAE", "PCGrad", 1e-3)}
    assert {job.weighting for job in jobs} == {weighting.name for weighting in PROBLEMS["VAE"].weightings}


def test_jets_are_autograds_derivatives() -> None:
    network = make_network(inputs=2, width=7, depth=3, seed=0).double()
    points = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    value = network(points)[:, 0]

    def derivative(of: Tensor) -> Tensor:
        return torch.autograd.grad(of.sum(), points, create_graph=True)[0]

    first = derivative(value)
    second = derivative(first[:, 0])[:, 0]
    jet = propagate(network, jet_at(points.detach()).double())
    torch.testing.assert_close(jet, torch.stack([value, second, *first.unbind(dim=1)]))


def test_solution_of_burgers_equation() -> None:
    points = 257
    u = solution(points).double().numpy()
    step_t, step_x = 1 / (points - 1), 2 / (points - 1)
    u_t = (u[2:, 1:-1] - u[:-2, 1:-1]) / (2 * step_t)
    u_x = (u[1:-1, 2:] - u[1:-1, :-2]) / (2 * step_x)
    u_xx = (u[1:-1, 2:] - 2 * u[1:-1, 1:-1] + u[1:-1, :-2]) / step_x**2
    residual = u_t + u[1:-1, 1:-1] * u_x - NU * u_xx
    assert np.abs(residual).max() < 0.02 * np.abs(u_t).max()  # second order in the steps
    x, t = grid(points)[: 2 * points].T.reshape(2, 2, points)
    assert (t[0] == 0).all()
    np.testing.assert_allclose(u[0], -np.sin(math.pi * x[0].numpy()), atol=1e-6)
    np.testing.assert_allclose(u[:, [0, -1]], 0, atol=1e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_losses_have_the_terms_that_are_weighted_and_ordered(name: str) -> None:
    problem = PROBLEMS[name]
    terms = set().union(*problem.orders.values())
    assert set(problem.start(0).losses()) <= terms
    for weighting in (*problem.weightings, *problem.by_hand):
        assert set(weighting.draw(0)) <= terms
    assert all(set(order) == terms for order in problem.orders.values())
    assert problem.default_lr in problem.rates
    assert len(problem.rates) == 4


@pytest.mark.parametrize("name", PROBLEMS)
def test_training_improves_the_score(name: str) -> None:
    problem = PROBLEMS[name]
    weighting = problem.weightings[0].name
    few, more = (train(Job(name, weighting, "BalancedAdam", "", 1e-2, 0, steps)).score for steps in (1, 400))
    assert (more > few) == problem.higher_is_better


def test_only_mtadam_sees_the_order() -> None:
    problem = PROBLEMS["two tasks"]
    for name in BY_NAME:
        scores = {train(Job(problem.name, "slant 100", name, order, 1e-2, 0, 20)).score for order in problem.orders}
        assert len(scores) == (2 if BY_NAME[name].sees_order else 1)


def made_up_problem() -> Problem:
    """Return a problem for reports only."""
    (weighting,) = PROBLEMS["VAE"].weightings[1:2]

    def start(seed: int) -> Training:
        raise NotImplementedError

    return Problem("made up", start, 1, (weighting,), "score", worst=9.0, rates=(1e-3, 1e-2))


def make_results(method: str, weighting: str, scores: dict[float, list[float]]) -> list[Result]:
    """Return results of the made-up problem, validated on half the score."""
    return [
        Result(Job("made up", weighting, method, "", lr, seed, 1), score, -score, diverged=score == 9.0)
        for lr, of_lr in scores.items()
        for seed, score in enumerate(of_lr)
    ]


def test_the_learning_rate_is_chosen_on_validation_data_and_divergence_is_said() -> None:
    results = make_results("Adam, weights 1", "all 1", {1e-3: [2.0, 2.2, 2.1], 1e-2: [2.5, 2.4, 2.6]})
    results += make_results("BalancedAdam", "KL 100", {1e-3: [2.1, 2.3, 2.2], 1e-2: [9.0, 2.0, 2.0]})
    outcome = Outcome(made_up_problem(), results)
    assert table(outcome) == [
        ["weights", "lr", "Adam, weights 1", "BalancedAdam"],
        ["KL 100", "0.001", "2.1 ± 0.1", "2.2 ± 0.1"],
        ["KL 100", "best", "2.5 ± 0.1 (lr 0.01)", "4.3 ± 4.0 (lr 0.01, diverged: 1)"],
    ]
    first, last = verdict(outcome)
    assert "falls short of Adam, weights 1 (-0.1 ± 0.0); is within one standard deviation" in first
    assert "cannot be told from Adam, weights 1 (-1.8 ± 2.3); is not within one standard deviation" in last


def test_the_summary_shows_the_worst_weights() -> None:
    problem = replace(made_up_problem(), weightings=PROBLEMS["VAE"].weightings)
    results = make_results("Adam", "all 1", {1e-3: [1.0, 1.0]}) + make_results("Adam", "KL 100", {1e-3: [3.0, 3.0]})
    results += make_results("Adam", "KL 0.01", {1e-3: [2.0, 2.0]})
    header, row = summary([Outcome(problem, results)])
    assert row[header.index("Adam, bad weights")] == "3.0 ± 0.0"


def test_a_run_that_diverged_has_the_worst_score() -> None:
    job = Job("made up", "KL 100", "Adam", "", 1e-3, 0, 1)
    training = Training(torch.nn.Linear(1, 1), dict, lambda: math.nan, lambda: 1.0)
    assert judge(job, made_up_problem(), training) == Result(job, 9.0, 9.0, diverged=True)
