"""The demo, in the small: it runs, and leaves its table, numbers and pictures."""

import json
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parent.parent / "bench" / "demo.py"


def test_quick_demo(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(DEMO), "--quick", "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    for method in ("Adam, balanced sum", "Adam, bad weights", "MTAdam, bad weights"):
        assert method in run.stdout
        assert method in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "demo.json").read_text())["verdict"] in run.stdout
    for picture in ("curves.png", "scales.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
