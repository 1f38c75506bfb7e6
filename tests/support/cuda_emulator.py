"""Builds the native module with its CUDA kernels compiled for the CPU, behind tests/kernels/native/cuda_on_cpu.h."""

import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import ModuleType

import pybind11
import torch

from mtadam_fused.backends import CudaBackend

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
OBJECTS = TemporaryDirectory()
SHIM = ROOT / "tests" / "kernels" / "native" / "cuda_on_cpu.h"
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DMTADAM_COMPILER=__VERSION__"]
FLAGS += ['-DMTADAM_CUDA="the CPU"', f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]


def compile_one(source: Path, target: Path, sanitize: Sequence[str]) -> Path:
    """Compile an object; only CUDA sources are sanitized."""
    flags = [*FLAGS, "-DMTADAM_ISA=baseline"] if source.name == "blocks.cpp" else FLAGS
    if source.suffix == ".cu":
        flags = [*flags, *sanitize, "-x", "c++", "-include", str(SHIM)]
    done = subprocess.run(["g++", *flags, "-c", str(source), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@cache
def compile_once(source: Path, sanitize: tuple[str, ...]) -> Path:
    """Compile a source as it is, once for all builds of this process."""
    return compile_one(source, Path(mkdtemp(dir=OBJECTS.name)) / f"{source.name}.o", sanitize)


def build(folder: Path, sanitize: tuple[str, ...] = (), changed: Path | None = None) -> Path:
    """Build the module's library in ``folder``.

    Args:
        sanitize: options of the compiler, for the CUDA sources.
        changed: a CUDA source to take in the place of the one of its name. It is linked first: of a function that
            several objects have, the linker takes the first.
    """

    def compile_or_reuse(source: Path) -> Path:
        if source == changed:
            return compile_one(source, folder / f"{source.name}.o", sanitize)
        return compile_once(source, sanitize if source.suffix == ".cu" else ())

    sources = [CSRC / "bindings.cpp", *(CSRC / "cpu").glob("*.cpp"), *(CSRC / "cuda").glob("*.cu")]
    if changed:
        sources = [changed, *(source for source in sources if source.name != changed.name)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_or_reuse, sources))
    library = folder / "_C.so"
    subprocess.run(["g++", "-shared", *sanitize, "-o", library, *objects, "-ldl", "-lpthread"], check=True)
    return library


class EmulatedCuda(CudaBackend):
    """The CUDA backend on tensors of the CPU, for a native module that runs the kernels there."""

    def __init__(self, *, one_launch: bool = False) -> None:
        super().__init__(stream=lambda _: 0, one_launch=one_launch)

    def supports(self, device: torch.device) -> bool:
        return device.type == "cpu"


def load(library: Path) -> ModuleType:
    """Load the module of a library, beside the one that is installed."""
    # A name of its own, because pybind11 gives the module that it has already made under a name once more.
    spec = importlib.util.spec_from_file_location(f"{library}._C", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
