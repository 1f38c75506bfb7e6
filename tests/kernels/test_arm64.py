"""The CPU kernels compiled for arm64, run in an emulator: the bits of x86, with vector instructions."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.sanitized import CSRC, FLAGS

PREFIX = "aarch64-linux-gnu-"
EMULATOR = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
PROGRAMS = Path(__file__).parent / "native"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("g++", f"{PREFIX}g++", EMULATOR[0]))),
        reason="needs g++, and Debian's g++-aarch64-linux-gnu and qemu-user",
    ),
]


class Programs(NamedTuple):
    here: Path
    arm64: Path
    contracted: Path  # fuses multiplications and additions, which setup.py forbids
    conversions: Path


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    folder = tmp_path_factory.mktemp("arm64")
    kernels = [PROGRAMS / "steps.cpp", *(CSRC / "cpu").glob("*.cpp")]

    def compile_one(name: str, prefix: str, sources: list[Path], *flags: str) -> Path:
        command = [f"{prefix}g++", *FLAGS, *flags, "-DMTADAM_ISA=baseline", *sources, "-o", folder / name, "-ldl"]
        subprocess.run(list(map(str, command)), check=True)
        return folder / name

    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(compile_one, "here", "", kernels),
            pool.submit(compile_one, "arm64", PREFIX, kernels),
            pool.submit(compile_one, "contracted", PREFIX, kernels, "-ffp-contract=fast"),
            pool.submit(compile_one, "conversions", PREFIX, [PROGRAMS / "test_conversions.cpp"]),
        ]
        return Programs(*(job.result() for job in jobs))


def digests(*command: str | Path) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_bits_are_those_of_this_machine(programs: Programs) -> None:
    expected = digests(programs.here)
    assert len(expected) == 5
    assert digests(*EMULATOR, programs.arm64) == expected


def test_digest_tells_contraction(programs: Programs) -> None:
    """Negative control."""
    pairs = zip(digests(*EMULATOR, programs.contracted), digests(programs.here), strict=True)
    assert all(contracted != expected for contracted, expected in pairs)


def test_conversions(programs: Programs) -> None:
    done = subprocess.run([*EMULATOR, programs.conversions], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("vector", ["4s", "2d"])
def test_loops_are_vectorized(vector: str, programs: Programs) -> None:
    """Look for what an update alone has: roots of vectors of float32 and of float64."""
    code = subprocess.run([f"{PREFIX}objdump", "-d", programs.arm64], check=True, capture_output=True, text=True).stdout
    roots = [line for line in code.splitlines() if "\tfsqrt\t" in line]
    assert any(f".{vector}" in line for line in roots)
