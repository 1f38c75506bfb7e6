"""bench/gpu_check.sh with stand-ins for what it runs: whatever happens, it ends in time and tells what did."""

import os
import re
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
        [[ $* != *tuning.counters* || ! $NO_NCU ]] || { echo no ncu on PATH; exit 5; }
        [[ $* != *tuning* ]] || printf '| %s |\n\nand other lines\n' "${*: -1}"
        echo "$SAYS" """,
}
STEPS = ["build", "build-report", "cuda-first", "cuda-counters", "cuda-tests", "cuda-random", "triton-tests"]
STEPS += ["triton-random", "benchmarks", "sanitizer-memcheck", "sanitizer-racecheck"]
SPARE = ["benchmarks-sweep", "benchmarks-compiled"]
STEPS += SPARE


class Check:
    """A run of the script: its verdicts, and the commands that it gave."""

    def __init__(self, folder: Path, **environment: str) -> None:
        for name, body in STAND_INS.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (folder / name).chmod(0o755)
        self.out, calls = folder / "out", folder / "calls"
        chosen = {
            "HANGS": "",
            "FAILS": "",
            "REFUSED": "",
            "NO_NCU": "",
            "SAYS": "= 3 passed, 1 skipped in 1s =",
            **environment,
        }
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
        lines = [line.split() for line in (self.out / "table.txt").read_text().splitlines() if line]
        self.verdicts = {line[0]: line[1] for line in lines if line[0] in (*STEPS, "sanitizer")}


def test_all_passes(tmp_path: Path) -> None:
    check = Check(tmp_path)
    assert check.rc == 0
    assert check.verdicts == dict.fromkeys(STEPS, "passed")
    assert check.printed.endswith("| ms |\n= 3 passed, 1 skipped in 1s =\n")
    files = {str(path.relative_to(check.out)) for path in check.out.rglob("*") if path.is_file()}
    logs = {"build.log", "cuda.log", "triton.log", "benchmarks.log", "sanitizer.log"}
    assert files == logs | {"table.txt", "h200/benchmarks.json"}  # and the CSV: no more than eight
    assert "| bench.tuning.counters |\n" in check.printed
    assert check.printed.count("and other lines") == 0
    of_tests = [call.partition(" -k ")[2] for call in check.calls if "test_gpu.py" in call and "--tool" not in call]
    first = "layouts or graph or one_launch"
    assert of_tests[0] == f"not triton and ({first})"
    assert set(of_tests[1:3]) == {f"not triton and not ({first})", "triton"}
    of_random = {call.partition(" -k ")[2] for call in check.calls if "test_gpu_properties.py" in call}
    assert of_random == {"not triton", "triton"}


def test_what_a_torch_compile_takes_comes_last(tmp_path: Path) -> None:
    check = Check(tmp_path)
    compiling = [call for call in check.calls if "bench/speed" in call]
    assert ["--compile-seconds 0" in call for call in compiling] == [True, False]
    assert check.calls[-2] == compiling[-1]  # then the tables


@pytest.mark.parametrize(
    ("step", "command"),
    [
        ("build", "pip install"),
        ("build-report", "mtadam_fused.__main__"),
        ("cuda-first", "test_gpu.py -k not triton and ("),
        ("cuda-counters", "bench.tuning.counters"),
        ("cuda-tests", "test_gpu.py -k not triton and not ("),
        ("triton-random", "test_gpu_properties.py -k triton"),
        ("benchmarks", "bench/speed --within"),
        ("benchmarks-sweep", "bench.tuning.sweep"),
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
    [
        ("triton-tests", "test_gpu.py -k triton", "FAILED"),
        ("benchmarks", "bench/speed --within", "cut"),
        ("cuda-counters", "bench.tuning.counters", "cut"),
    ],
)
def test_what_hangs_is_ended(step: str, command: str, verdict: str, tmp_path: Path) -> None:
    check = Check(tmp_path, HANGS=command)
    assert check.rc == (verdict == "FAILED")
    assert check.verdicts == dict.fromkeys(STEPS, "passed") | {step: verdict}


def test_a_sanitizer_that_refuses_costs_nothing_else(tmp_path: Path) -> None:
    check = Check(tmp_path, REFUSED="1")
    assert check.rc == 0
    others = [step for step in STEPS if not step.startswith("sanitizer")]
    assert check.verdicts == dict.fromkeys(others, "passed") | {"sanitizer": "refused"}
    assert "Device not supported" in check.printed


def test_without_hardware_counters_nothing_fails(tmp_path: Path) -> None:
    check = Check(tmp_path, NO_NCU="1")
    assert check.rc == 0
    assert check.verdicts == dict.fromkeys(STEPS, "passed") | {"cuda-counters": "skipped"}
    assert re.search(r"^cuda-counters +skipped +\d+ s +no ncu on PATH$", check.printed, re.MULTILINE)


def test_tests_that_are_all_skipped_have_not_passed(tmp_path: Path) -> None:
    assert Check(tmp_path, SAYS="= 4 skipped in 1s =").verdicts["cuda-tests"] == "skipped"


def test_nothing_begins_after_the_end(tmp_path: Path) -> None:
    check = Check(tmp_path, SECONDS="494")  # that have passed already, for bash
    assert check.rc == 1
    needed = [step for step in STEPS if step not in SPARE]
    assert check.verdicts == dict.fromkeys(needed, "FAILED") | dict.fromkeys(SPARE, "cut")
    assert check.printed.count("no time was left") >= len(STEPS)
    assert [call for call in check.calls if "pytest" in call or "pip" in call or "tuning" in call] == []


def test_what_can_be_spared_begins_only_with_time_for_it(tmp_path: Path) -> None:
    check = Check(tmp_path, SECONDS=str(495 - 50))  # the steps before take a few seconds
    assert [check.verdicts[step] for step in SPARE] == ["passed", "cut"]
