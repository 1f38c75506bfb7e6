"""Trains a small network on ten badly weighted loss terms, with Adam and with MTAdam: ``python bench/demo.py``.

The experiment of the first table of the MTAdam paper (Malkiel and Wolf, arXiv 2006.14683) on real data: one loss term
per class of digits, the first of weight 1 and the others of random weights up to 1000. Every method trains at every
learning rate of one grid, and is judged on test images at the rate that is best on validation images: once after a
quarter of the epochs, once after all, for bad weights can cost time, accuracy, or both.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from demo_report import (
    NOTE,
    Choice,
    Runs,
    as_markdown,
    as_text,
    choose,
    draw_curves,
    draw_scales,
    edge_warning,
    table,
    verdict,
)
from demo_training import BATCH, CHANNELS, METHODS, Images, draw_bad_weights, load_images, train
from tqdm import tqdm


@dataclass(frozen=True)
class Settings:
    """Size of the experiment."""

    epochs: int
    seeds: int
    rates: tuple[float, ...]  # ascending, wide enough that the best of each method is inside


FULL = Settings(epochs=20, seeds=5, rates=(3e-3, 1e-2, 3e-2, 1e-1))
QUICK = Settings(epochs=2, seeds=1, rates=(1e-2, 3e-2))


def positive(text: str) -> int:
    """An option's value that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def parse_options() -> tuple[Settings, Path]:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Adam and MTAdam on ten badly weighted loss terms.")
    parser.add_argument("--epochs", type=positive, help=f"epochs of each run ({FULL.epochs}; quick: {QUICK.epochs})")
    parser.add_argument("--seeds", type=positive, help=f"runs of each kind ({FULL.seeds}; quick: {QUICK.seeds})")
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo", help="output folder")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    return Settings(options.epochs or size.epochs, options.seeds or size.seeds, size.rates), options.out


def run_all(images: Images, settings: Settings) -> Runs:
    """Trains every method at every learning rate from every seed."""
    runs: Runs = {(method, lr): [] for method in METHODS for lr in settings.rates}
    with tqdm(total=len(runs) * settings.seeds * settings.epochs, unit="epoch") as progress:
        for seed in range(settings.seeds):
            for method, lr in runs:
                progress.set_description(f"seed {seed}, {method.name}, lr {lr:g}")
                runs[method, lr].append(train(images, method, lr, seed, settings.epochs, progress.update))
    return runs


def choose_all(runs: Runs, settings: Settings) -> list[Choice]:
    """The choice of each method, after a quarter of the epochs and after all."""
    budgets = sorted({max(1, settings.epochs // 4), settings.epochs})
    return [choose(runs, method, epochs) for epochs in budgets for method in METHODS]


def as_json(images: Images, settings: Settings, runs: Runs, choices: list[Choice]) -> dict[str, object]:
    """Everything that the table and the pictures show."""
    last = choices[-len(METHODS) :]
    return {
        "settings": asdict(settings) | {"batch": BATCH, "channels": CHANNELS},
        "data": {"name": images.name, "shape": list(images.pixels.shape)},
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "weights": [draw_bad_weights(seed) for seed in range(settings.seeds)],
        "choices": [asdict(c) for c in choices],
        "curves": {c.method.name: [run.test for run in runs[c.method, c.lr]] for c in last},
        "scales": runs[last[-1].method, last[-1].lr][0].scales,
        "verdict": verdict(choices),
    }


def main() -> None:
    """Runs the experiment, prints its table, and writes table, numbers and pictures."""
    settings, out = parse_options()
    torch.set_num_threads(1)  # tensors this small only lose time to threads
    start = time.perf_counter(), time.process_time()
    images = load_images()
    runs = run_all(images, settings)
    seconds = {"seconds": time.perf_counter() - start[0], "cpu_seconds": time.process_time() - start[1]}

    choices = choose_all(runs, settings)
    results = as_json(images, settings, runs, choices)
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(results | seconds, indent=1) + "\n")
    (out / "table.md").write_text(f"{as_markdown(table(choices))}\n\n{NOTE}\n\n{results['verdict']}\n")
    draw_curves(runs, choices, out / "curves.png")
    best_mtadam = choices[-1]
    draw_scales(runs[best_mtadam.method, best_mtadam.lr][0].scales, draw_bad_weights(0), out / "scales.png")

    print(f"{images.name}, {len(images.labels)} images, seeds: {settings.seeds}, {seconds['seconds']:.0f} s\n")
    print(f"{as_text(table(choices))}\n{NOTE}\n\n{edge_warning(choices)}{results['verdict']}\nWritten to {out}")


if __name__ == "__main__":
    main()
