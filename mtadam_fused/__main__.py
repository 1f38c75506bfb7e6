"""``python -m mtadam_fused``: what "auto" takes, what was built, and what can be used and why not."""

import json
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .backends import native, select_backend, statuses

FACTS = Path(__file__).with_name("_build.json")  # written by setup.py


def devices() -> list[torch.device]:
    """Return the CPU, and the accelerator if there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [torch.device("cpu")] + ([accelerator] if accelerator is not None else [])


def describe_kernels(facts: dict[str, Any]) -> str:
    """Return with which compiler kernels were built and for what, or why they were not."""
    if "left_out" in facts:
        return f"not built: {facts['left_out']}"
    made_for = facts.get("architectures") or facts["instruction_sets"]
    return f"built with {facts['compiler']} for {', '.join(made_for)}"


def build_lines(path: Path = FACTS) -> list[str]:
    """Return what ``path`` says of the build, a line for each kind of kernels."""
    if not path.exists():
        return [f"  {native.why_missing() if native.module is None else 'not recorded: reinstall mtadam_fused'}"]
    facts = json.loads(path.read_text())
    return [f"  {f'{kind.upper()} kernels':<16} {describe_kernels(facts[kind])}" for kind in ("cpu", "cuda")]


def report() -> str:
    """Return the report as text, one fact per line."""
    python = f"Python {platform.python_version()} on {platform.machine()}"
    lines = [f"mtadam_fused {__version__}, torch {torch.__version__}, {python}", ""]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason for a slow choice stands below
        lines += [f"on {device}: backend {select_backend('auto', device).name}" for device in devices()]
    lines += ["", "kernels", *build_lines(), "", "backends"]
    for name, status in statuses().items():
        lines.append(f"  {name:<16} {'usable    ' if status.usable else 'NOT usable'}  {status.reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
