"""The CUDA kernels compile for the GPUs that wheels are built for, and keep everything in registers."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

pytestmark = [pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on PATH"), pytest.mark.slow]

# Reads a parameter at an index that only the run knows, so the compiler must keep the array in memory.
SPILLING = """
__global__ void kernel(float* out, int n) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = out[i * n];
  for (int i = 0; i < n; ++i) out[i] = kept[(i * n) % 64];
}
"""


# 16 bytes copied as a struct, which the compiler takes apart.
NARROW = """
struct Four { float at[4]; };
__global__ void kernel(Four* to, const Four* from) {
  Four four = from[threadIdx.x];
  for (float& x : four.at) x *= 2;
  to[threadIdx.x] = four;
}
"""


def resources(source: Path, arch: str, folder: Path) -> list[str]:
    """ptxas's lines on stack frames, spills and registers."""
    command = ["nvcc", "-std=c++17", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v", "-Werror"]
    command += ["all-warnings", "-c", str(source), "-o", str(folder / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if re.search("stack frame|registers", line)]


def spills(lines: list[str]) -> bool:
    """Return whether any kernel has a stack frame or spilled registers."""
    clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    return any("stack frame" in line and line.strip() != clean for line in lines)


def usual_architectures() -> list[str]:
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "USUAL_ARCHITECTURES":
            return ast.literal_eval(node.value)
    raise LookupError("setup.py names no USUAL_ARCHITECTURES")


# Of the others, the test of the machine code reads what was built.
@pytest.mark.parametrize("arch", usual_architectures()[-1:])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_spills(source: Path, arch: str, tmp_path: Path) -> None:
    lines = resources(source, arch, tmp_path)
    print(
        source.name,
        f"sm_{arch}",
        *(line.partition(":")[2].strip() for line in lines if "registers" in line),
        sep="\n  ",
    )
    assert not spills(lines)


def wide_accesses(source: Path, folder: Path) -> set[str]:
    """Return the instructions that move 16 bytes from or to global memory."""
    target = folder / "kernel.ptx"
    subprocess.run(["nvcc", "-std=c++17", "-O3", "-arch=compute_90", "-ptx", source, "-o", target], check=True)
    return set(re.findall(r"\b(?:ld|st)\.global[.a-z]*\.v4\.[a-z]32", target.read_text()))


@pytest.mark.parametrize("kernel", ["term_norms", "term_gram", "mtadam_update", "combined_adam", "mtadam_step"])
def test_memory_is_accessed_16_bytes_at_a_time(kernel: str, tmp_path: Path) -> None:
    expected = set()
    if kernel in ("term_norms", "term_gram", "mtadam_step"):
        expected |= {"ld.global.nc.v4.s32"}  # gradients, which are read again
    if kernel in ("mtadam_update", "combined_adam", "mtadam_step"):
        expected |= {"ld.global.cs.v4.s32", "st.global.cs.v4.s32"}  # all that an update reads and writes
    assert wide_accesses(ROOT / "csrc" / "cuda" / f"{kernel}.cu", tmp_path) == expected


def test_narrow_accesses_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "narrow.cu"
    source.write_text(NARROW)
    assert not wide_accesses(source, tmp_path)


def test_a_stack_frame_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    assert spills(resources(source, "90", tmp_path))
