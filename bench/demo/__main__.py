"""Train a small network on ten badly weighted loss terms, with Adam and with our optimizers: ``python -m bench.demo``.

The experiment of the first table of the MTAdam paper (Malkiel and Wolf, arXiv 2006.14683) on real data: one loss term
per class of digits, the first of weight 1 and the others of random weights up to 1000. Beside these weights it tries
worse ones, spread over six decades. Every method trains at every
learning rate of one grid, and is judged on test images at the rate that is best on validation images: once after a
quarter of the epochs, once after all, for bad weights can cost time, accuracy, or both. ``--strategy all`` does the
same with every strategy of the package, and measures what they cost. ``--report`` makes tables and pictures anew from
the numbers of an earlier run.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.demo.cost import measure_costs
from bench.demo.data import BATCH, WEIGHTS, load_images
from bench.demo.pictures import draw_curves, draw_scales, draw_strategies
from bench.demo.report import (
    NOTE,
    Choice,
    Runs,
    as_markdown,
    as_text,
    choose,
    edge_warning,
    in_short,
    methods_table,
    read_choices,
    read_costs,
    strategies_note,
    strategies_table,
    verdict,
)
from bench.demo.strategies import DECADES, MAKERS, METHODS, STRATEGIES, Strategy
from bench.demo.training import Job, train
from bench.workloads.digits import CHANNELS

Results = dict[str, Any]  # what goes into the JSON

SHOWN = Strategy("BalancedAdam", DECADES, MAKERS["BalancedAdam"])  # in the picture of the scales
PROCESSES = min(8, os.cpu_count() or 1)  # more would cost memory, and save little


@dataclass(frozen=True)
class Settings:
    """Size of the experiment."""

    rates: tuple[float, ...]  # ascending, wide enough that the best of each method is inside
    epochs: int = 20
    seeds: int = 5
    rounds: int = 30  # of turns, in which the strategies are timed


QUICK = Settings((1e-2, 3e-2), epochs=2, seeds=1, rounds=1)


def run_all(strategies: Sequence[Strategy], settings: Settings) -> Runs:
    """Train with every strategy at every learning rate from every seed, in processes of one thread.

    Tensors this small only lose time to more threads.
    """
    runs: Runs = {(strategy.name, lr): [] for strategy in strategies for lr in settings.rates}
    jobs = [Job(name, lr, seed, settings.epochs) for seed in range(settings.seeds) for name, lr in runs]
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads in an unknown state
    with ProcessPoolExecutor(PROCESSES, context, torch.set_num_threads, (1,)) as pool:
        for job, run in zip(jobs, tqdm(pool.map(train, jobs), total=len(jobs), unit="run"), strict=True):
            runs[job.strategy, job.lr].append(run)
    return runs


def choose_all(strategies: Sequence[Strategy], runs: Runs, settings: Settings) -> list[Choice]:
    """Return the choice of each strategy, after a quarter of the epochs and after all."""
    budgets = sorted({max(1, settings.epochs // 4), settings.epochs})
    return [choose(runs, strategy.name, epochs) for epochs in budgets for strategy in strategies]


def describe_setting(settings: Settings) -> Results:
    """Return what the runs were made with."""
    images = load_images()
    return {
        "settings": asdict(settings) | {"batch": BATCH, "channels": CHANNELS},
        "data": {"name": images.name, "shape": list(images.pixels.shape)},
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "weights": {name: [draw(seed) for seed in range(settings.seeds)] for name, draw in WEIGHTS.items()},
    }


def compare_methods(settings: Settings) -> Results:
    """Train with Adam and with our optimizers; return the numbers."""
    runs = run_all(METHODS, settings)
    choices = choose_all(METHODS, runs, settings)
    last = choices[-len(METHODS) :]
    shown = next(c for c in last if c.strategy == SHOWN.name)
    return describe_setting(settings) | {
        "choices": [asdict(c) for c in choices],
        "curves": {c.strategy: [run.test for run in runs[c.strategy, c.lr]] for c in last},
        "scales": runs[shown.strategy, shown.lr][0].scales,
        "verdict": verdict(choices),
    }


def report_methods(results: Results, out: Path) -> str:
    """Write tables and pictures of what :func:`compare_methods` found; return the text to print."""
    choices = read_choices(results)
    (out / "table.md").write_text(f"{as_markdown(methods_table(choices))}\n\n{NOTE}\n\n{verdict(choices)}\n")
    (out / "short.md").write_text(f"{in_short(choices, results['seconds'], results['cpu_seconds'])}\n")
    draw_curves(results["curves"], choices[-len(METHODS) :], out / "curves.png")
    draw_scales(results["scales"], results["weights"][SHOWN.weights][0], out / "scales.png")
    return f"{as_text(methods_table(choices))}\n{NOTE}\n\n{edge_warning(choices)}{verdict(choices)}"


def compare_strategies(settings: Settings) -> Results:
    """Train with all strategies, and measure what they cost; return the numbers."""
    choices = choose_all(STRATEGIES, run_all(STRATEGIES, settings), settings)
    costs = measure_costs(load_images(), {c.strategy: c.lr for c in choices}, settings.rounds)
    return describe_setting(settings) | {
        "choices": [asdict(c) for c in choices],
        "costs": {name: asdict(cost) for name, cost in costs.items()},
    }


def report_strategies(results: Results, out: Path) -> str:
    """Write table and picture of what :func:`compare_strategies` found; return the text to print."""
    choices = read_choices(results)
    cells = strategies_table(choices, read_costs(results))
    note = f"{strategies_note(choices)} {edge_warning(choices)}".strip()
    (out / "strategies.md").write_text(f"{as_markdown(cells)}\n\n{note}\n")
    draw_strategies(choices, out / "strategies.png")
    return f"{as_text(cells)}\n\n{note}"


@dataclass(frozen=True)
class Experiment:
    """The experiment that ``--strategy`` chooses."""

    settings: Settings
    run: Callable[[Settings], Results]
    report: Callable[[Results, Path], str]
    numbers: str  # file


EXPERIMENTS = {
    "mtadam": Experiment(Settings((3e-3, 1e-2, 3e-2, 1e-1)), compare_methods, report_methods, "demo.json"),
    "all": Experiment(
        Settings((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), seeds=3), compare_strategies, report_strategies, "strategies.json"
    ),
}


def positive_int(text: str) -> int:
    """Parse an option's value that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def parse_options() -> tuple[Experiment, Settings, argparse.Namespace]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Adam and ours, or all strategies, on ten badly weighted terms.")
    parser.add_argument(
        "--strategy", choices=list(EXPERIMENTS), default="mtadam", help="Adam and ours, or all strategies"
    )
    parser.add_argument("--epochs", type=positive_int, help=f"epochs a run ({Settings.epochs}; quick: {QUICK.epochs})")
    parser.add_argument(
        "--seeds", type=positive_int, help=f"runs of each kind ({Settings.seeds}; quick: {QUICK.seeds})"
    )
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="output folder (build/demo)")
    parser.add_argument("--report", action="store_true", help="do not train: take the numbers in the output folder")
    options = parser.parse_args()
    experiment = EXPERIMENTS[options.strategy]
    size = QUICK if options.quick else experiment.settings
    settings = replace(size, epochs=options.epochs or size.epochs, seeds=options.seeds or size.seeds)
    return experiment, settings, options


def main() -> None:
    """Run the experiment, print its table, and write table, numbers and pictures."""
    experiment, settings, options = parse_options()
    numbers = options.out / experiment.numbers
    if not options.report:
        numbers.parent.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps(timed(experiment.run, settings), indent=1) + "\n")
    results = json.loads(numbers.read_text())
    data, seeds = results["data"], results["settings"]["seeds"]
    print(f"{data['name']}, {data['shape'][0]} images, seeds: {seeds}, {results['seconds']:.0f} s\n")
    print(f"{experiment.report(results, options.out)}\nWritten to {options.out}")


def timed(run: Callable[[Settings], Results], settings: Settings) -> Results:
    """Run the experiment on one thread; return its numbers and how long it took."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    return run(settings) | {"seconds": time.perf_counter() - start, "cpu_seconds": sum(os.times()[:4])}


if __name__ == "__main__":
    main()
