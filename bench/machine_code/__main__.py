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


def make_page() -> str:
    """Read the kernels of both backends; return the page."""
    module = NativeModule.find()
    native = [each for arch in ARCHITECTURES for each in module.read(CUDA, arch)]
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_triton(Path(folder))
    return page(
        {f"CUDA, {module.compiler}": table(CUDA, native), f"Triton {version('triton')}": table(TRITON, compiled)}
    )


def main() -> None:
    """Print the page, and write it where that is wanted."""
    parser = argparse.ArgumentParser(description="What the machine code of the GPU kernels allows.")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    options = parser.parse_args()
    text = make_page()
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
