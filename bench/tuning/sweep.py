"""``python -m bench.tuning.sweep``: time steps on a GPU with other constants of the CUDA backend, side by side.

The one-launch step with larger and smaller windows, and updates of a row in either order; three launches with larger
and smaller chunks of mid-sized models.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from bench.harness.agreement import Start, check_first_run
from bench.harness.devices import CudaDevice, Device
from bench.harness.measure import Budget, Contender, quartiles, speedup, take_turns
from bench.peers.ours import ONE_LAUNCH, make_mtadam
from bench.report.tables import Row, format_number, format_ratio, markdown
from bench.workloads.shapes import Case
from mtadam_fused.backends import cuda, device

BUDGET = Budget(least=5, most=25, seconds=2.0)


@dataclass(frozen=True)
class Setting:
    """A backend, and the constants that a module has while it makes its buffers, in the first step."""

    backend: str
    module: Any = None
    constants: Mapping[str, Any] = field(default_factory=dict)

    def applied(self) -> AbstractContextManager[Any]:
        """Let the module have these constants in a scope."""
        return patch.multiple(self.module, **self.constants) if self.constants else nullcontext()


def window(exponent: int, *, descending: bool) -> Setting:
    """Return the one-launch step with a window of 2 to the ``exponent`` elements."""
    order = partial(cuda.launch_order, descending=descending)
    return Setting(ONE_LAUNCH, cuda, {"AHEAD_ELEMENTS": 2**exponent, "launch_order": order})


# By name; the first is compared with the others.
Settings = Mapping[str, Setting]
WINDOWS: Settings = {"three launches": Setting("cuda")} | {
    f"one launch, 2^{exponent}, {'descending' if descending else 'ascending'}": window(exponent, descending=descending)
    for exponent in (21, 22, 23)
    for descending in (True, False)
}
CHUNKS: Settings = {
    f"ENOUGH_CHUNKS = {n}": Setting("cuda", device, {"ENOUGH_CHUNKS": n}) for n in (2048, 256, 512, 1024, 4096)
}
SWEEPS = (
    *((Case(workload, 4), WINDOWS) for workload in ("resnet50", "bert_base")),
    *((Case(workload, 4), CHUNKS) for workload in ("srresnet", "cyclegan", "equal_20m", "pix2pix")),
)


def make_contender(name: str, setting: Setting, case: Case, on: Device, grads: list, start: Start) -> Contender:
    """Make a contender that has made its first step, as it should be, with the setting's constants."""
    contender = replace(make_mtadam(setting.backend, case, on, grads), name=name)
    with setting.applied():
        check_first_run(contender, start)
    return contender


def measure(case: Case, settings: Settings, on: Device, budget: Budget = BUDGET) -> list[Row]:
    """Time a step with each of the settings, in turns."""
    grads = case.grads(on.torch_device)
    start = Start.copy_of(case.params(on.torch_device), grads)
    made = [make_contender(name, setting, case, on, grads, start) for name, setting in settings.items()]
    times = take_turns(on, made, budget)
    first = made[0].name
    return [
        {
            "case": str(case),
            "setting": contender.name,
            "ms": format_number(1e3 * quartiles(times.device(contender.name)).median),
            f"times as fast as {first}": format_ratio(speedup(times.device(contender.name), times.device(first))),
        }
        for contender in made
    ]


def main() -> None:
    """Print a table for each sweep."""
    parser = argparse.ArgumentParser(description="Time steps with other constants of the CUDA backend.")
    parser.add_argument("--within", type=float, default=math.inf, metavar="SECONDS", help="begin no sweep after that")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device: the constants are for one")
    end, on = time.monotonic() + options.within, CudaDevice()
    for case, settings in SWEEPS:
        if time.monotonic() >= end:
            print(f"No time was left for {case}.")
            continue
        print(markdown(measure(case, settings, on)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
