"""The CUDA kernels' real source on the CPU under AddressSanitizer, UBSan and ThreadSanitizer."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import ROOT, build
from sanitized import runtime

ADDRESS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-O1", "-g1", "-fsanitize=thread")

# A few steps of awkward sizes on the kernels of the library that is named.
STEPS = """
import os, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from mtadam_fused import fused_optimizer
from cases import Case, CombinedCase
from emulation import load
from mtadam_fused.backends import CudaBackend, native
from training import begun
native.module = load(sys.argv[1])
backend = CudaBackend(stream=lambda _: 0)
in_one_launch = CudaBackend(stream=lambda _: 0, in_one_launch=True)
for dtype in (torch.float32, torch.float16):
    shapes, layouts = ((0,), (1,), (3,), (4096,), (20001,)), ("contiguous",) * 5
    options = {"amsgrad": True, "weight_decay": 0.1}
    grad_layouts = (*layouts[1:], "offset")
    for each in (backend, in_one_launch):
        fused_optimizer.choose = lambda *_: each
        case = Case(dtype, shapes, layouts, grad_layouts, terms=6, seed=0, absent=0.2, options=options, steps=2)
        case.run("reference")
    for terms in (3, 9):
        case = CombinedCase(dtype, shapes[1:], layouts[1:], grad_layouts[1:], terms, seed=1, absent=0.2, steps=1)
        case.run("reference")

# Each of the 8 blocks of a launch on an OS thread of its own: nothing but the kernel's queue orders them.
os.environ["CUDA_ON_CPU_THREADS"] = "8"
fused_optimizer.choose = lambda *_: in_one_launch
begun("MTAdam", "cpu", "cuda", sizes=(1, 3000)).step()
print("no report")
"""

pytestmark = pytest.mark.skipif(
    not shutil.which("g++") or platform.machine() != "x86_64", reason="needs g++ and an x86-64 machine"
)


def run(library: Path, *runtimes: str) -> subprocess.CompletedProcess[str]:
    preload = " ".join(runtime(name) for name in runtimes)
    environment = os.environ | {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-c", STEPS, str(library), str(ROOT / "tests")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run with this kernel's address randomisation")
    return done


def broken(folder: Path, file: str, correct: str, fault: str) -> Path:
    """A copy of the sources with one fault in it."""
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
    "term_norms": ("stages.cuh", "slice.partial_sum(k, chunk", "slice.partial_sum(k + 1, chunk"),
    "mtadam_update": ("stages.cuh", "load<C, V>(k, state.i)", "load<C, V>(k, state.i + 4)"),
    "term_gram": ("term_gram.cu", "if (pair.k < slice.terms) ", ""),
    "combined_adam": ("combined_adam.cu", "store_pack(second_at,", "store_pack(second_at + 4,"),
}


@pytest.mark.parametrize("kernel", OVERRUNS)
def test_an_index_out_of_bounds_is_caught(kernel: str, tmp_path: Path) -> None:
    file, correct, fault = OVERRUNS[kernel]
    csrc = broken(tmp_path, f"cuda/{file}", correct, fault)
    done = run(build(tmp_path, csrc, ADDRESS), "asan", "ubsan")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert f"{kernel}_kernel" in done.stderr


RACES = {
    "barrier": ("cuda/reduce.cuh", "  __syncthreads();  // before the next", "  // before the next"),
    "release of a balanced row": ("cuda/mtadam_step.cu", "memory_order_release", "memory_order_relaxed"),
    "acquisition of it": ("cuda/mtadam_step.cu", "memory_order_acquire", "memory_order_relaxed"),
    "release of norms": ("cuda/mtadam_step.cu", "memory_order_acq_rel", "memory_order_acquire"),
}


@pytest.mark.parametrize("missing", RACES)
def test_a_race_is_caught(missing: str, tmp_path: Path) -> None:
    csrc = broken(tmp_path, *RACES[missing])
    done = run(build(tmp_path, csrc, THREAD), "tsan")
    assert "ThreadSanitizer: data race" in done.stderr
    assert "_kernel" in done.stderr
