"""Print what the machine code of the GPU kernels allows: ``python -m bench.machine_code``. No GPU is needed."""

import argparse
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bench.machine_code.compiled import Compiled, NativeModule, compile_triton
from bench.machine_code.judge import judge
from bench.machine_code.kernels import ARCHITECTURES, CUDA, TRITON, HotLoop
from bench.machine_code.report import page, result_table


def table(loops: Sequence[HotLoop], compiled: Sequence[Compiled]) -> str:
    """Return the table of a backend's loops."""
    return result_table(loops, {(loop, arch): judge(loop, compiled, arch) for loop in loops for arch in ARCHITECTURES})


def make_page(nvcc: str, native: Sequence[Compiled], triton: Sequence[Compiled]) -> str:
    """Return the page of the kernels of both backends. ``nvcc`` is the version that compiled those in CUDA."""
    return page({f"CUDA, {nvcc}": table(CUDA, native), f"Triton {version('triton')}": table(TRITON, triton)})


def main() -> None:
    """Print the page, and write it where that is wanted."""
    parser = argparse.ArgumentParser(description="What the machine code of the GPU kernels allows.")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    options = parser.parse_args()
    module = NativeModule.find()
    with tempfile.TemporaryDirectory() as folder:
        text = make_page(module.compiler, module.read_all(CUDA), compile_triton(Path(folder)))
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
