"""Train small problems with badly weighted loss terms, by each method, and compare the quality: see README.md.

``python -m bench.quality`` takes some 25 minutes on two processors. Every method trains every problem from five seeds
at four learning rates, and is reported at one default rate and at its best one. No run is left out. ``--report`` makes
tables and pictures anew from the numbers of an earlier run.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from bench.demo.report import as_markdown
from bench.quality.methods import BY_NAME
from bench.quality.pictures import draw_runs
from bench.quality.problems import PROBLEMS
from bench.quality.report import note, summary, summary_note, table, verdict
from bench.quality.study import QUICK, Outcome, Size, jobs_of, run_all
from bench.quality.training import Job, Result


def write(results: Sequence[Result], names: Sequence[str], out: Path) -> str:
    """Write a table and a picture for each problem, and one page of all; return its text."""
    sections = []
    outcomes = [Outcome(PROBLEMS[name], results) for name in names]
    (out / "summary.md").write_text(f"{as_markdown(summary(outcomes))}\n\n{summary_note(outcomes)}\n")
    for name, outcome in zip(names, outcomes, strict=True):
        file = name.lower().replace(" ", "_")
        body = f"{as_markdown(table(outcome))}\n\n{note(outcome)}\n"
        (out / f"{file}.md").write_text(body)
        draw_runs(outcome, out / f"{file}.png")
        points = "\n".join(f"* {line}" for line in verdict(outcome))
        sections.append(f"## {name}\n\n{body}\n![Scores of all runs]({file}.png)\n\n{points}\n")
    text = "\n".join(["# Quality of training\n", *sections])
    (out / "README.md").write_text(text)
    return text


def as_json(results: Sequence[Result], seconds: float) -> str:
    """Return all numbers, a line for each run."""
    head = {
        "seconds": seconds,
        "processors": os.cpu_count(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
    }
    runs = [
        json.dumps(asdict(r.job) | {"score": r.score, "validation": r.validation, "diverged": r.diverged})
        for r in results
    ]
    lines = ",\n".join(runs)
    return f'{json.dumps(head)[:-1]}, "runs": [\n{lines}\n]}}\n'


def read_results(path: Path) -> list[Result]:
    """Return the runs that :func:`as_json` wrote."""
    runs = json.loads(path.read_text())["runs"]
    names = [f.name for f in fields(Job)]
    return [
        Result(Job(**{name: run[name] for name in names}), run["score"], run["validation"], run["diverged"])
        for run in runs
    ]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare optimizers by the quality that they train small problems to.")
    parser.add_argument("--problem", choices=list(PROBLEMS), nargs="+", default=list(PROBLEMS))
    parser.add_argument("--method", choices=list(BY_NAME), nargs="+", default=list(BY_NAME))
    parser.add_argument("--seeds", type=int, help=f"runs of each kind ({Size.seeds})")
    parser.add_argument("--quick", action="store_true", help="a run of seconds, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("build/quality"), help="output folder (build/quality)")
    parser.add_argument("--report", action="store_true", help="do not train: take the numbers in the output folder")
    return parser.parse_args()


def main() -> None:
    """Run the study, print its tables, and write them with numbers and pictures."""
    options = parse_options()
    numbers = options.out / "quality.json"
    if options.report:
        print(write(read_results(numbers), options.problem, options.out))
        return
    size = QUICK if options.quick else Size()
    size = replace(size, seeds=options.seeds or size.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    methods = [BY_NAME[name] for name in options.method]
    results = run_all(job for name in options.problem for job in jobs_of(PROBLEMS[name], methods, size))
    seconds = time.perf_counter() - start
    numbers.write_text(as_json(results, seconds))
    print(f"{write(results, options.problem, options.out)}\n{seconds:.0f} s. Written to {options.out}")


if __name__ == "__main__":
    main()
