"""Check the installed package, where its sources and compilers are out of sight.

``python -I tests/support/check_installed.py cpu cuda`` says that kernels for both must be in it. No GPU is needed.
"""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

import mtadam_fused


def train(backend: str) -> list[torch.Tensor]:
    """Return the parameters of a small model after three steps with two terms."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 33), torch.nn.Tanh(), torch.nn.Linear(33, 2))
    optimizer = mtadam_fused.MTAdam(model.parameters(), lr=0.01, backend=backend)
    inputs = torch.randn(16, 7)
    for _ in range(3):
        error = model(inputs) - inputs[:, :2]
        optimizer.backward([error[:, 0].square().mean(), error[:, 1].abs().mean()])
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def main(kinds: list[str]) -> None:
    """Raise an error unless native kernels were built for these kinds of devices, and those of the CPU make steps."""
    folder = Path(mtadam_fused.__file__).parent
    if folder.parent != Path(sysconfig.get_path("platlib")):
        raise RuntimeError(f"mtadam_fused was imported from {folder}, which is not where pip installs it")
    torch.testing.assert_close(train("cpu"), train("reference"))
    command = [sys.executable, "-I", "-m", "mtadam_fused"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(report)
    for kind in kinds:
        if not re.search(rf"^ +{kind.upper()} kernels +built with ", report, re.MULTILINE):
            raise RuntimeError(f"`python -m mtadam_fused` names no {kind.upper()} kernels that were built")
    if "on cpu: backend cpu\n" not in report:
        raise RuntimeError('`python -m mtadam_fused` does not say that "auto" takes the CPU kernels')
    print(f"passed: installed in {folder}, three steps on the CPU kernels")


if __name__ == "__main__":
    main(sys.argv[1:])
