"""The compiled kernels: those in the native module, and Triton's, which are compiled for GPUs that are not there."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mtadam_fused
from bench.machine_code.in_flight import Kernel
from bench.machine_code.kernels import ARCHITECTURES, HotLoop
from bench.machine_code.sass import disassemble, read_resources

ROOT = Path(__file__).parents[2]
PACKAGE = Path(mtadam_fused.__file__).parent
CUDA_THREADS = 256  # of a block, kThreads in csrc/cuda/device.cuh


@dataclass(frozen=True)
class Compiled:
    """A kernel, and the block that it is launched with."""

    kernel: Kernel
    shared: int  # bytes
    threads: int


@dataclass(frozen=True)
class NativeModule:
    """The package's native module, with CUDA kernels for all architectures."""

    path: Path
    compiler: str

    @classmethod
    def find(cls) -> "NativeModule":
        """Return the module.

        Raises:
            LookupError: it is not there, or was built without these kernels.
        """
        file = PACKAGE / "_build.json"
        facts = json.loads(file.read_text())["cuda"] if file.exists() else {"left_out": "the package is not installed"}
        missing = {f"sm_{arch}" for arch in ARCHITECTURES} - set(facts.get("architectures", ()))
        if missing:
            names, why = ", ".join(sorted(missing)), facts.get("left_out", "not wanted")
            wanted = ";".join(map(str, ARCHITECTURES))
            raise LookupError(
                f"{PACKAGE} has no CUDA kernels for {names} ({why}): reinstall it with nvcc on PATH and "
                f"MTADAM_FUSED_CUDA_ARCHITECTURES='{wanted}'"
            )
        return cls(next(PACKAGE.glob("_C*.so")), facts["compiler"])

    def read_all(self, loops: Sequence[HotLoop]) -> list[Compiled]:
        """Disassemble the functions that loops are in, for all architectures."""
        return [each for architecture in ARCHITECTURES for each in self.read(loops, architecture)]

    def read(self, loops: Sequence[HotLoop], architecture: int) -> list[Compiled]:
        """Disassemble the functions that loops are in: where there are two, that with the smaller argument."""
        functions = sorted(read_resources(self.path, architecture), key=lambda function: function.argument)
        first = (next((each for each in functions if loop.is_in(each.name)), None) for loop in loops)
        chosen = list(dict.fromkeys(function for function in first if function))
        return [
            Compiled(Kernel(function), function.shared, CUDA_THREADS) for function in disassemble(self.path, chosen)
        ]


def compile_triton(folder: Path, architectures: Sequence[int] = ARCHITECTURES) -> list[Compiled]:
    """Compile the Triton kernels as a step launches them, with ``folder`` as Triton's cache, and disassemble them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-m", "bench.machine_code.triton_worker", *map(str, architectures)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {run.stderr.strip()}")
    return [read_cubin(**cubin) for cubin in json.loads(run.stdout)]


def read_cubin(name: str, path: str, architecture: int, shared: int, threads: int) -> Compiled:
    """Disassemble the function in a cubin, under another name."""
    (function,) = disassemble(Path(path), read_resources(Path(path), architecture))
    return Compiled(Kernel(replace(function, name=name)), shared, threads)
