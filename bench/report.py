"""Tables of measurements, as text, and what they were measured on."""

import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

Row = dict[str, object]
Report = dict[str, list[Row]]  # rows by the title of their table


def markdown(rows: list[Row]) -> str:
    """A Markdown table, numbers to two digits behind the point."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(report: Report) -> str:
    return "\n\n".join(f"{title}:\n\n{markdown(rows)}" for title, rows in report.items())


def cpu_model() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.processor()


def where(config: pytest.Config) -> Row:
    """What the numbers were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=config.rootpath, check=False
    )
    return {
        "machine": cpu_model() if Path("/proc/cpuinfo").exists() else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "command": "pytest " + " ".join(os.fspath(argument) for argument in config.invocation_params.args),
    }
