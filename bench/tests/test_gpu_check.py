"""bench/gpu_check.sh with stand-ins for what it runs: whatever happens, it ends in time and tells what did."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "gpu_check.sh"
STAND_INS = {
    "nvidia-smi": "echo NVIDIA H200, 580.1",
    # Two seconds are long enough for every stand-in.
    "timeout": 'while [[ $1 == --* ]]; do shift; done; shift; exec /usr/bin/timeout -s INT -k 1 2 "$@"',
    "compute-sanitizer": '[[ ! $REFUSED ]] || { echo Device not supported; exit 1; }; exec python3 "$@"',
    "python3": """
        echo "$*" >>"$CALLS"
        [[ ! $HANGS || $* != *$HANGS* ]] || { trap "" INT; sleep 60; }
        [[ ! $FAILS || $* != *$FAILS* ]] || { echo boom; exit 1; }
        [[ $* != *--record* ]] || { mkdir -p "$OUT/h200"; echo {} >"$OUT/h200/benchmarks.json"; }
        [[ $* != *report.tables* ]] || echo "| ms |"
        echo "$SAYS" """,
}
STEPS = ["build", "build-report", "cuda-tests", "cuda-random", "triton-tests", "triton-random", "benchmarks"]
STEPS += ["sanitizer-memcheck", "sanitizer-racecheck"]


class Check:
    """A run of the script: its verdicts, and the commands that it gave."""

    def __init__(self, folder: Path, **environment: str) -> None:
        for name, body in STAND_INS.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / name).chmod(0o755)
        self.out, calls = folder / "out", folder / "calls"
        chosen = {"HANGS": "", "FAILS": "", "REFUSED": "", "SAYS": "= 3 passed, 1 skipped in 1s =", **environment}
        paths = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "OUT": str(self.out)}
        done = subprocess.run(
            ["bash", str(SCRIPT), str(self.out), "0123abc"],
            env=os.environ | chosen | paths,
            capture_output=True,
            text=True,
            check=False,
        )
        self.rc, self.printed = done.returncode, done.stdout
        self.calls = calls.read_text().splitlines() if calls.exists() else []
        lines = [line.split() for line in (self.out / "table.txt").read_text().splitlines()]
        self.verdicts = {line[0]: line[1] for line in lines if line[0] in (*STEPS, "sanitizer")}


def test_all_passes(tmp_path: Path) -> None:
    check = Check(tmp_path)
    assert check.rc == 0
    assert check.verdicts == dict.fromkeys(STEPS, "passed")
    assert check.printed.endswith("| ms |\n= 3 passed, 1 skipped in 1s =\n")
    files = {str(path.relative_to(check.out)) for path in check.out.rglob("*") if path.is_file()}
    logs = {"build.log", "cuda.log", "triton.log", "benchmarks.log", "sanitizer.log"}
    assert files == logs | {"table.txt", "h200/benchmarks.json"}  # and the CSV: no more than eight
    of_tests = [call for call in check.calls if "tests/gpu/" in call]
    assert sum(call.endswith("-k not triton") for call in of_tests) == 2
    assert sum(call.endswith("-k triton") for call in of_tests) == 2


@pytest.mark.parametrize(
    ("step", "command"),
    [
        ("build", "pip install"),
        ("build-report", "mtadam_fused.__main__"),
        ("cuda-tests", "test_gpu.py -k not triton"),
        ("triton-random", "test_gpu_properties.py -k triton"),
        ("benchmarks", "pytest bench"),
        ("sanitizer-racecheck", "racecheck"),
    ],
)
def test_a_failure_is_told_and_the_rest_still_runs(step: str, command: str, tmp_path: Path) -> None:
    check = Check(tmp_path, FAILS=command)
    assert check.rc == 1
    assert check.verdicts == dict.fromkeys(STEPS, "passed") | {step: "FAILED"}
    assert "boom" in check.printed


@pytest.mark.parametrize(
    ("step", "command", "verdict"),
    [("triton-tests", "test_gpu.py -k triton", "FAILED"), ("benchmarks", "pytest bench", "cut")],
)
def test_what_hangs_is_ended(step: str, command: str, verdict: str, tmp_path: Path) -> None:
    check = Check(tmp_path, HANGS=command)
    assert check.rc == (verdict == "FAILED")
    assert check.verdicts == dict.fromkeys(STEPS, "passed") | {step: verdict}


def test_a_sanitizer_that_refuses_costs_nothing_else(tmp_path: Path) -> None:
    check = Check(tmp_path, REFUSED="1")
    assert check.rc == 0
    assert check.verdicts == dict.fromkeys(STEPS[:-2], "passed") | {"sanitizer": "refused"}
    assert "Device not supported" in check.printed


def test_tests_that_are_all_skipped_have_not_passed(tmp_path: Path) -> None:
    assert Check(tmp_path, SAYS="= 4 skipped in 1s =").verdicts["cuda-tests"] == "skipped"


def test_nothing_begins_after_the_end(tmp_path: Path) -> None:
    check = Check(tmp_path, SECONDS="494")  # that have passed already, for bash
    assert check.rc == 1
    assert set(check.verdicts.values()) == {"FAILED"}
    assert check.printed.count("no time was left") >= len(STEPS)
    assert [call for call in check.calls if "pytest" in call or "pip" in call] == []
