"""Makes steps on the Triton kernels, compiled for a GPU that is not there: ``triton_compile_worker.py 90`` for sm_90.

It runs all that a launch does, but launches nothing. Prints JSON: the names of the kernels that each step compiled, for
each run; and the PTX of each kernel and type.
"""

import json
import sys
from collections import defaultdict
from typing import Any

import torch
import triton
from torch import nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.backends import TritonBackend
from mtadam_fused.rules import PCGrad
from oracles.absent_gpu import AbsentGpu
from tests.support.stages import prepare_step

FLOAT32 = (torch.float32,)
ALL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (5, 16, 1, 8192, 30_000)


class CompiledTriton(TritonBackend):
    """The Triton backend, without its interpreter, on parameters of the CPU."""

    def supports(self, device: torch.device) -> bool:
        return device.type == "cpu"


class Compilations:
    """The kernels that Triton compiles: names since the last look, and PTX for each name and type of parameters."""

    def __init__(self) -> None:
        self.ptx: dict[str, str] = {}
        self._names: list[str] = []
        triton.knobs.compilation.listener = self.note

    def note(self, src: Any, metadata_group: dict[str, str], **_: Any) -> None:
        self._names.append(src.name)
        types = [str(value) for value in src.constants.values() if isinstance(value, triton.language.dtype)]
        (path,) = [path for name, path in metadata_group.items() if name.endswith(".ptx")]
        with open(path) as file:
            self.ptx[" ".join([src.name, *types])] = file.read()

    def look(self) -> list[str]:
        names, self._names = self._names, []
        return names


def run(
    compilations: Compilations,
    dtypes: tuple,
    sizes: tuple,
    terms: int,
    steps: int,
    offset: int = 0,
    combined: bool = False,
) -> list[list[str]]:
    """Return the kernels that each step compiled, each step with another learning rate."""
    params = [nn.Parameter(torch.zeros(n + offset, dtype=dtype)[offset:]) for n in sizes for dtype in dtypes]
    options: dict[str, Any] = {"amsgrad": True, "keep_combined_grad": True, "backend": CompiledTriton()}
    optimizer = CombinedAdam(params, PCGrad(), **options) if combined else MTAdam(params, **options)
    compiled = []
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 / (t + 1)
        for k in range(terms):
            with optimizer.term(k):
                for p in params:
                    p.grad = torch.zeros_like(p)
        optimizer.step()
        compiled.append(compilations.look())
    return compiled


@triton.jit
def only_for_the_interpreter(out):
    try:  # a statement that no version compiles
        triton.language.store(out, 6)
    finally:
        pass


def is_refused() -> bool:
    """Return whether the compiler refuses a kernel that the interpreter takes."""
    try:
        only_for_the_interpreter[(1,)](torch.zeros(1))
    except Exception:
        return True
    return False


def main(architecture: int) -> None:
    triton.runtime.driver.set_active(AbsentGpu(architecture))
    compilations = Compilations()
    runs: dict[str, list] = defaultdict(list)
    runs["float32"] = run(compilations, FLOAT32, SIZES, terms=3, steps=50)
    runs["other sizes"] = run(compilations, FLOAT32, (7, 4096) * 20, terms=3, steps=2)
    runs["unaligned"] = run(compilations, FLOAT32, SIZES, terms=3, steps=2, offset=1)
    runs["other terms"] = run(compilations, FLOAT32, SIZES, terms=2, steps=2)
    runs["all types"] = run(compilations, ALL, SIZES, terms=3, steps=2)
    args, kernels = prepare_step(CompiledTriton(), "cpu")
    compilations.look()
    kernels.term_norms(args)
    kernels.balance(args)
    runs["stages apart"] = [compilations.look()]
    runs["combined"] = run(compilations, FLOAT32, SIZES, terms=3, steps=50, combined=True)
    runs["combined, all types"] = run(compilations, ALL, SIZES, terms=3, steps=2, combined=True)
    print(json.dumps({"runs": runs, "ptx": compilations.ptx, "refused": is_refused()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
