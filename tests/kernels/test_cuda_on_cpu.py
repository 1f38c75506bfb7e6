"""The header that runs CUDA sources on the CPU, native/cuda_on_cpu.h, tested by a C++ program with kernels of its own.

The program is built plain and with the sanitizers. Its negative controls are kernels with one fault each, which the
build that is there to find such faults must report.
"""

import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parent / "native/test_cuda_on_cpu.cpp"
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread")
VARIANTS = {
    "plain": ("-O2",),
    "address": ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-g1", "-fsanitize=thread"),
}

# Fault, the variant that must report it, and what the report says.
REPORTED = [
    ("missing-barrier", "thread", "WARNING: ThreadSanitizer: data race"),
    ("missing-second-barrier", "thread", "WARNING: ThreadSanitizer: data race"),
    ("shuffle-for-barrier", "thread", "WARNING: ThreadSanitizer: data race"),
    ("race-of-blocks", "thread", "WARNING: ThreadSanitizer: data race"),
    ("out-of-bounds", "address", "AddressSanitizer: heap-buffer-overflow"),
    ("out-of-shared", "address", "runtime error: index 64 out of bounds"),
]

# Fault, and what the message says in every variant.
DEADLOCKS = [
    ("barrier-after-exit", "divergent barrier: of the 64 threads of block 0, 63 wait in __syncthreads"),
    ("barrier-against-shuffle", "divergent barrier: of the 64 threads of block 0, 32 wait in __syncthreads"),
    ("lane-missing", "lanes missing from a warp shuffle"),
]


pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Built:
    """A command that runs a variant of the program, or why there is none."""

    command: tuple[str, ...]
    missing: str = ""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if self.missing:
            pytest.skip(self.missing)
        return run([*self.command, *arguments])


def run(command: Sequence[object]) -> subprocess.CompletedProcess[str]:
    # Leaks are not looked for: that needs ptrace, which containers often refuse.
    env = {"PATH": os.environ["PATH"], "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, timeout=120)


def runnable(program: Path) -> Built:
    """ThreadSanitizer cannot place its memory where the kernel randomizes addresses more than it expects."""
    if "unexpected memory mapping" not in run([program, "none"]).stderr:
        return Built((str(program),))
    fixed = ("setarch", "-R", str(program))
    if shutil.which("setarch") and run([*fixed, "none"]).returncode == 0:
        return Built(fixed)
    return Built((), "ThreadSanitizer finds an unexpected memory mapping: lower the sysctl vm.mmap_rnd_bits to 28")


def build(variant: str, folder: Path) -> Built:
    flags = (*FLAGS, *VARIANTS[variant])
    empty = folder / f"{variant}_empty.cpp"
    empty.write_text("int main() {}\n")
    if run(["g++", *flags, empty, "-o", empty.with_suffix("")]).returncode != 0:
        return Built((), f"g++ cannot link with {' '.join(VARIANTS[variant])}: install libasan, libubsan and libtsan")
    program = folder / variant
    done = run(["g++", *flags, PROGRAM, "-o", program])
    assert done.returncode == 0, done.stderr
    return runnable(program)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("cuda_on_cpu.h is for x86-64 Linux")
    if not shutil.which("g++"):
        pytest.skip("no g++ to build the test program with")
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(VARIANTS, pool.map(lambda variant: build(variant, folder), VARIANTS), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_run(programs: dict[str, Built], variant: str) -> None:
    done = programs[variant].run()
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("fault", "variant", "report"), REPORTED)
def test_sanitizer_sees_fault(programs: dict[str, Built], fault: str, variant: str, report: str) -> None:
    done = programs[variant].run(fault)
    assert done.returncode != 0
    assert report in done.stderr
    assert PROGRAM.name in done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("fault", "message"), DEADLOCKS)
def test_deadlock_aborts(programs: dict[str, Built], fault: str, message: str, variant: str) -> None:
    done = programs[variant].run(fault)
    assert done.returncode == -signal.SIGABRT
    assert message in done.stderr


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_fault_survives(programs: dict[str, Built], variant: str) -> None:
    """The control of the negative controls."""
    done = programs[variant].run("none")
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")
