"""Make steps on the Triton kernels, compiled for GPUs that are not there: ``triton_worker 80 90`` for sm_80 and sm_90.

Prints JSON: the cubins of the kernels that read parameters or gradients, for each type of parameters.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from torch import nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.backends import TritonBackend
from mtadam_fused.rules import PCGrad
from oracles.absent_gpu import AbsentGpu

TERMS = 4
TYPES = (torch.float32, torch.bfloat16)  # float16 is loaded as bfloat16 is
WARP_SIZE = 32


class CompiledTriton(TritonBackend):
    """The Triton backend on parameters of the CPU, which nothing reads."""

    def supports(self, device: torch.device) -> bool:
        return device.type == "cpu"


def make_steps() -> None:
    """Make a step of MTAdam, and one of CombinedAdam with a rule that looks at dot products."""
    for optimizer_class, args in ((MTAdam, ()), (CombinedAdam, (PCGrad(),))):
        params = [nn.Parameter(torch.zeros(64, dtype=dtype)) for dtype in TYPES]
        optimizer: Any = optimizer_class(params, *args, backend=CompiledTriton())
        for k in range(TERMS):
            with optimizer.term(k):
                for p in params:
                    p.grad = torch.zeros_like(p)
        optimizer.step()


def describe_cubin(src: Any, files: dict[str, str], architecture: int) -> dict[str, Any]:
    """Return where a compiled kernel is, and how it is launched."""
    paths = {Path(name).suffix: path for name, path in files.items()}
    metadata = json.loads(Path(paths[".json"]).read_text())
    types = [str(value) for value in src.constants.values() if isinstance(value, triton.language.dtype)]
    return {
        "name": ":".join([src.name, *types]),
        "path": paths[".cubin"],
        "architecture": architecture,
        "shared": metadata["shared"],
        "threads": metadata["num_warps"] * WARP_SIZE,
    }


def main(architectures: list[int]) -> None:
    cubins: list[dict[str, Any]] = []
    for architecture in architectures:

        def note(src: Any, metadata_group: dict[str, str], architecture: int = architecture, **_: Any) -> None:
            cubins.append(describe_cubin(src, metadata_group, architecture))

        triton.runtime.driver.set_active(AbsentGpu(architecture))
        triton.knobs.compilation.listener = note
        make_steps()
    print(json.dumps([cubin for cubin in cubins if ":" in cubin["name"]]))


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
