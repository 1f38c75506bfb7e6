"""``python -m bench.tuning.counters``: show what Nsight Compute (ncu) counts while the CUDA kernels run.

ncu replays a kernel where it cannot count all in one go, and restores the memory before. That changes what the L2 cache
holds when a kernel begins, so hits between kernels are not seen. Those within one kernel are.

Exits with 5, as pytest does where it finds no test, if there is no ncu or it is refused the counters.
"""

import csv
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.peers.ours import ONE_LAUNCH, set_gradients
from bench.report.tables import Row, format_number, markdown
from bench.workloads.shapes import Case
from mtadam_fused import CombinedAdam, MTAdam, rules

CASES = (Case("resnet50", 4), Case("resnet50", 4, torch.bfloat16))
KERNELS = ("term_norms", "mtadam_update", "mtadam_step", "term_gram")  # each once in a case
METRICS = {  # columns, and what to multiply the base unit with
    "gpu__time_duration.sum": ("us", 1e-3),
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": ("% of DRAM's peak", 1.0),
    "dram__bytes_read.sum": ("MB read", 1e-6),
    "dram__bytes_write.sum": ("MB written", 1e-6),
    "lts__t_sector_op_read_hit_rate.pct": ("% L2 hits of reads", 1.0),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("% occupancy", 1.0),
}
OPTIONS = (
    *("--clock-control", "none", "--cache-control", "none", "--profile-from-start", "off"),
    *("--kernel-name", f"regex:^({'|'.join(KERNELS)})_kernel", "--print-kernel-base", "function"),
    *("--metrics", ",".join(METRICS), "--csv", "--print-units", "base"),
)
NOTHING_COUNTED = 5
OF_THE_PROGRAM = "The application returned an error code"  # in ncu's message, if what it ran failed


def optimizers(case: Case, device: torch.device) -> Iterator[MTAdam | CombinedAdam]:
    """Yield optimizers whose steps launch each of the kernels once."""
    yield MTAdam(case.params(device), backend="cuda")
    yield MTAdam(case.params(device), backend=ONE_LAUNCH)
    yield CombinedAdam(case.params(device), rules.PCGrad(), backend="cuda")


def step_all(device: torch.device) -> None:
    """Make the steps that ncu counts, each after one that it does not."""
    for case in CASES:
        grads = case.grads(device)
        for optimizer in optimizers(case, device):
            for counted in (False, True):
                set_gradients(optimizer, optimizer.param_groups[0]["params"], grads)
                with torch.cuda.profiler.profile() if counted else nullcontext():
                    optimizer.step()
                    torch.cuda.synchronize()


def read_counters(lines: Iterable[str]) -> dict[str, list[dict[str, str]]]:
    """Return the metrics of each kernel's launches, from ncu's CSV and the messages before it."""
    values: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for line in csv.DictReader(line for line in lines if line.startswith('"')):
        values[line["ID"], line["Kernel Name"]][line["Metric Name"]] = line["Metric Value"]
    launches: dict[str, list[dict[str, str]]] = defaultdict(list)
    for (_, kernel), metrics in values.items():
        launches[kernel.removesuffix("_kernel")].append(metrics)
    return launches


def format_metric(value: str, scale: float) -> str:
    """Format a value; as it is where ncu has no number."""
    try:
        return format_number(scale * float(value.replace(",", "")))
    except ValueError:
        return value


def rows(launches: dict[str, list[dict[str, str]]]) -> list[Row]:
    """Return a line for each launch. It has the name of its case if the kernel was launched once in each."""
    lines = []
    for kernel in KERNELS:
        counted = launches[kernel]
        names = CASES if len(counted) == len(CASES) else range(len(counted))
        for name, metrics in zip(names, counted, strict=True):
            cells = {
                column: format_metric(metrics.get(metric, ""), scale) for metric, (column, scale) in METRICS.items()
            }
            lines.append({"kernel": kernel, "case": str(name), **cells})
    return lines


def main() -> None:
    """Run the steps in ncu, and print a table."""
    ncu = shutil.which("ncu")
    if ncu is None:
        print("no ncu on PATH")
        sys.exit(NOTHING_COUNTED)
    with TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [ncu, *OPTIONS, "--log-file", str(log), sys.executable, "-m", "bench.tuning.counters", "--steps"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines = (log.read_text() if log.exists() else "").splitlines() + done.stdout.splitlines()
    launches = read_counters(lines)
    if launches and done.returncode == 0:
        print(markdown(rows(launches)))
        return
    print("\n".join(lines))
    errors = [line for line in lines if line.startswith("==ERROR==")]
    of_ncu = [line for line in errors if OF_THE_PROGRAM not in line]  # which make the program fail too
    print([*of_ncu, *errors, "ncu counted nothing"][0])
    sys.exit(NOTHING_COUNTED if of_ncu or not errors else 1)


if __name__ == "__main__":
    step_all(torch.device("cuda")) if sys.argv[1:] == ["--steps"] else main()
