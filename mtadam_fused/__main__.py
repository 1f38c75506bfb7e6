"""``python -m mtadam_fused``: what is built, what can be used and why not, and what "auto" takes."""

import platform
import warnings

import torch

from . import __version__
from .backends import select_backend, statuses


def devices() -> list[torch.device]:
    """Return the CPU, and the accelerator if there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [torch.device("cpu")] + ([accelerator] if accelerator is not None else [])


def report() -> str:
    """Return the report as text, one fact per line."""
    python = f"Python {platform.python_version()} on {platform.machine()}"
    lines = [
        f"mtadam_fused {__version__}, torch {torch.__version__}, {python}",
        "",
        "backends",
    ]
    for name, status in statuses().items():
        lines.append(f"  {name:<16} {'usable    ' if status.usable else 'NOT usable'}  {status.reason}")
    lines += ["", 'what backend="auto" takes']
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason for a slow choice stands above
        lines += [f"  {device!s:<16} {select_backend('auto', device).name}" for device in devices()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
