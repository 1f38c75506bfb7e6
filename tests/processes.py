"""Processes of a gloo group on this machine."""

import subprocess
import sys
from pathlib import Path


def run_all(number: int, folder: Path, *arguments: str) -> list[str]:
    """What so many processes print, each of ``python *arguments RANK METHOD``, the latter for init_process_group."""
    command = [sys.executable, *arguments]
    meeting = f"file://{folder / 'meeting'}"
    runs = [
        subprocess.Popen([*command, str(rank), meeting], stdout=subprocess.PIPE, text=True) for rank in range(number)
    ]
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * number
    return outputs
