"""The CUDA kernels' real source on the CPU under AddressSanitizer, UBSan and ThreadSanitizer."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cuda_emulator import ROOT, build
from tests.support.sanitized import runtime

ADDRESS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-O1", "-g1", "-fsanitize=thread")

# A few steps of awkward sizes on the kernels of the library that is named.
STEPS = """
import os, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from tests.support.cases import Case, CombinedCase
from tests.support.cuda_emulator import EmulatedCuda, load
from mtadam_fused.backends import native
from tests.support.eigen import check_eigen
from tests.support.min_norm import check_min_norm
from tests.support.pcgrad import check_against_torch
from tests.support.small_problem import start_training
native.module = load(sys.argv[1])
check_against_torch(lambda args: native.module.cuda_pcgrad(args, 0, 0))
check_eigen(lambda args: native.module.cuda_symmetric_eigen(args, 0, 0))
check_min_norm(lambda args: native.module.cuda_min_norm(args, 0, 0))
three_launches, one_launch = EmulatedCuda(), EmulatedCuda(one_launch=True)
for dtype in (torch.float32, torch.float16):
    shapes, layouts = ((0,), (1,), (3,), (4096,), (20001,)), ("contiguous",) * 5
    options = {"amsgrad": True, "weight_decay": 0.1}
    grad_layouts = (*layouts[1:], "offset")
    for backend in (three_launches, one_launch):
        for choices in ({}, {"anchor": "geometric_mean", "norms": "corrected", "second_moments": "shared"}):
            case = Case(dtype, shapes, layouts, grad_layouts, 6, seed=0, absent=0.2, options=options | choices, steps=2)
            case.run(backend)
    for terms in (3, 9):
        case = CombinedCase(dtype, shapes[1:], layouts[1:], grad_layouts[1:], terms, seed=1, absent=0.2, steps=1)
        case.run(one_launch)

# Each of the 8 blocks of a launch on an OS thread of its own: nothing but the kernel's queue orders them.
os.environ["CUDA_ON_CPU_THREADS"] = "8"
for name in ("MTAdam", "BalancedAdam"):
    start_training(name, "cpu", one_launch, sizes=(1, 3000)).step()
print("no report")
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("g++") or platform.machine() != "x86_64", reason="needs g++ and an x86-64 machine"
    ),
]


def run(library: Path, *runtimes: str) -> subprocess.CompletedProcess[str]:
    preload = " ".join(runtime(name) for name in runtimes)
    environment = os.environ | {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's threads have races of their own
    command = [sys.executable, "-c", STEPS, str(library), str(ROOT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address randomization")
    return done


def copy_with_fault(folder: Path, file: str, correct: str, fault: str) -> Path:
    """Copy the sources, with one fault in them."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    text = (csrc / file).read_text()
    assert correct in text
    (csrc / file).write_text(text.replace(correct, fault))
    return csrc


def test_addresses_and_undefined_behaviour(tmp_path: Path) -> None:
    done = run(build(tmp_path, sanitize=ADDRESS), "asan", "ubsan")
    assert (done.returncode, done.stdout) == (0, "no report\n"), done.stderr


def test_races(tmp_path: Path) -> None:
    done = run(build(tmp_path, sanitize=THREAD), "tsan")
    assert (done.returncode, done.stdout) == (0, "no report\n"), done.stderr


# In each kernel that touches elements, an access out of bounds.
OVERRUNS = {
    "term_norms": ("stages.cuh", "args.partial_sum(k, chunk", "args.partial_sum(k + 1, chunk"),
    "mtadam_update": ("stages.cuh", "g[k] = tile.template read<V>(k, i);", "g[k] = tile.template read<V>(k, i + 4);"),
    "tile_gram": ("term_gram.cu", "if (pair.k < args.terms) ", ""),
    "combined_adam": ("stages.cuh", "store_pack(exp_avg_sq_at,", "store_pack(exp_avg_sq_at + 4,"),
    "pcgrad": ("pcgrad.cu", "if (k < args.terms)\n    args.weight", "args.weight"),
}


@pytest.mark.parametrize("kernel", OVERRUNS)
def test_an_index_out_of_bounds_is_caught(kernel: str, tmp_path: Path) -> None:
    file, correct, fault = OVERRUNS[kernel]
    csrc = copy_with_fault(tmp_path, f"cuda/{file}", correct, fault)
    done = run(build(tmp_path, csrc, ADDRESS), "asan", "ubsan")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert f"{kernel}_kernel" in done.stderr


RACES = {
    "barrier after the step is counted": (
        "cuda/stages.cuh",
        "fold_norms_row(args, r);\n  __syncthreads();",
        "fold_norms_row(args, r);",
    ),
    "barrier": ("cuda/reduce.cuh", "  __syncthreads();  // before the next", "  // before the next"),
    "release of a balanced row": ("cuda/mtadam_step.cu", "memory_order_release", "memory_order_relaxed"),
    "barrier before coefficients are summed": ("cuda/pcgrad.cu", "  __syncthreads();\n", ""),
    "barrier before entries are turned": ("rule_math.h", "  sync();  // all have read the entries\n", ""),
    "barrier before the best is read": ("cuda/min_norm.cu", "  __syncthreads();\n  if (t != best", "  if (t != best"),
    "acquisition of it": ("cuda/mtadam_step.cu", "memory_order_acquire", "memory_order_relaxed"),
    "release of norms": ("cuda/mtadam_step.cu", "memory_order_acq_rel", "memory_order_acquire"),
}


@pytest.mark.parametrize("missing", RACES)
def test_a_race_is_caught(missing: str, tmp_path: Path) -> None:
    csrc = copy_with_fault(tmp_path, *RACES[missing])
    done = run(build(tmp_path, csrc, THREAD), "tsan")
    assert "ThreadSanitizer: data race" in done.stderr
    assert "_kernel" in done.stderr
