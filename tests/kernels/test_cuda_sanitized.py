"""The CUDA kernels' real source on the CPU under AddressSanitizer, UBSan and ThreadSanitizer."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernels.cuda_cases import PARTS
from tests.support.cuda_emulator import ROOT, build
from tests.support.sanitized import runtime

ADDRESS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-O1", "-g1", "-fsanitize=thread")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("g++") or platform.machine() != "x86_64", reason="needs g++ and an x86-64 machine"
    ),
]


@dataclass(frozen=True)
class Fault:
    """Text of the sources, and what stands in its place."""

    source: str  # of csrc/cuda, which alone is compiled with the fault
    part: str  # of cuda_cases.py, which runs the kernel
    file: str
    correct: str
    wrong: str = ""

    def plant(self, folder: Path) -> Path:
        """Copy the sources with the fault into ``folder``; return the source to compile."""
        csrc = folder / "csrc"
        shutil.copytree(ROOT / "csrc", csrc)
        file = csrc / self.file
        text = file.read_text()
        assert text.count(self.correct) == 1
        file.write_text(text.replace(self.correct, self.wrong))
        return csrc / "cuda" / self.source


def run(library: Path, parts: list[str], *runtimes: str) -> subprocess.CompletedProcess[str]:
    preload = " ".join(runtime(name) for name in runtimes)
    environment = os.environ | {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's threads have races of their own
    command = [sys.executable, "-m", "tests.kernels.cuda_cases", str(library), *parts]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address randomization")
    return done


def test_addresses_and_undefined_behaviour(tmp_path: Path) -> None:
    done = run(build(tmp_path, ADDRESS), list(PARTS), "asan", "ubsan")
    assert (done.returncode, done.stdout) == (0, "no report\n"), done.stderr


def test_races(tmp_path: Path) -> None:
    done = run(build(tmp_path, THREAD), list(PARTS), "tsan")
    assert (done.returncode, done.stdout) == (0, "no report\n"), done.stderr


# In each kernel that touches elements, an access out of bounds.
OVERRUNS = {
    "term_norms": Fault(
        "term_norms.cu", "steps", "cuda/stages.cuh", "args.partial_sum(k, chunk", "args.partial_sum(k + 1, chunk"
    ),
    "mtadam_update": Fault(
        "mtadam_update.cu", "steps", "cuda/stages.cuh", "template read<V>(k, i);", "template read<V>(k, i + 4);"
    ),
    "tile_gram": Fault("term_gram.cu", "steps", "cuda/term_gram.cu", "if (pair.k < args.terms) "),
    "combined_adam": Fault(
        "combined_adam.cu", "steps", "cuda/stages.cuh", "store_pack(exp_avg_sq_at,", "store_pack(exp_avg_sq_at + 4,"
    ),
    "pcgrad": Fault("pcgrad.cu", "pcgrad", "cuda/pcgrad.cu", "if (k < args.terms)\n    args.weight", "args.weight"),
}


@pytest.mark.parametrize("kernel", OVERRUNS)
def test_an_index_out_of_bounds_is_caught(kernel: str, tmp_path: Path) -> None:
    fault = OVERRUNS[kernel]
    done = run(build(tmp_path, ADDRESS, fault.plant(tmp_path)), [fault.part], "asan", "ubsan")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert f"{kernel}_kernel" in done.stderr


# What is taken away.
RACES = {
    "barrier after the step is counted": Fault(
        "balance.cu",
        "steps",
        "cuda/stages.cuh",
        "fold_norms_row(args, r);\n  __syncthreads();",
        "fold_norms_row(args, r);",
    ),
    "barrier before sums are written again": Fault(
        "term_norms.cu", "steps", "cuda/reduce.cuh", "  __syncthreads();  // before", "  //"
    ),
    "release of a balanced row": Fault(
        "mtadam_step.cu", "queue", "cuda/mtadam_step.cu", "memory_order_release", "memory_order_relaxed"
    ),
    "acquisition of it": Fault(
        "mtadam_step.cu", "queue", "cuda/mtadam_step.cu", "memory_order_acquire", "memory_order_relaxed"
    ),
    "release of norms": Fault(
        "mtadam_step.cu", "queue", "cuda/mtadam_step.cu", "memory_order_acq_rel", "memory_order_acquire"
    ),
    "barrier before coefficients are summed": Fault("pcgrad.cu", "pcgrad", "cuda/pcgrad.cu", "  __syncthreads();\n"),
    "barrier before entries are turned": Fault(
        "symmetric_eigen.cu", "eigen", "rule_math.h", "  sync();  // all have read the entries\n"
    ),
    "barrier before the best is read": Fault(
        "min_norm.cu", "min_norm", "cuda/min_norm.cu", "  __syncthreads();\n  if (t != best", "  if (t != best"
    ),
}


@pytest.mark.parametrize("missing", RACES)
def test_a_race_is_caught(missing: str, tmp_path: Path) -> None:
    fault = RACES[missing]
    done = run(build(tmp_path, THREAD, fault.plant(tmp_path)), [fault.part], "tsan")
    assert "ThreadSanitizer: data race" in done.stderr
    assert f"{Path(fault.source).stem}_kernel" in done.stderr
