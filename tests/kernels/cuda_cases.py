"""A process that runs the CUDA kernels of a library that is compiled for the CPU: for test_cuda_sanitized.py."""

import os
import sys
from pathlib import Path

import torch

from mtadam_fused.backends import native
from tests.support.cases import Case, CombinedCase
from tests.support.cuda_emulator import EmulatedCuda, load
from tests.support.eigen import check_eigen
from tests.support.min_norm import check_min_norm
from tests.support.pcgrad import check_against_torch
from tests.support.small_problem import start_training


def run_pcgrad() -> None:
    check_against_torch(lambda args: native.module.cuda_pcgrad(args, 0, 0))


def run_eigen() -> None:
    check_eigen(lambda args: native.module.cuda_symmetric_eigen(args, 0, 0))


def run_min_norm() -> None:
    check_min_norm(lambda args: native.module.cuda_min_norm(args, 0, 0))


def run_steps() -> None:
    """Make a few steps of awkward sizes."""
    three_launches, one_launch = EmulatedCuda(), EmulatedCuda(one_launch=True)
    shapes, layouts = ((0,), (1,), (3,), (4096,), (20001,)), ("contiguous",) * 5
    grad_layouts = (*layouts[1:], "offset")
    options = {"amsgrad": True, "weight_decay": 0.1}
    for dtype in (torch.float32, torch.float16):
        for backend in (three_launches, one_launch):
            for choices in ({}, {"anchor": "geometric_mean", "norms": "corrected", "second_moments": "shared"}):
                chosen = options | choices
                Case(dtype, shapes, layouts, grad_layouts, 6, seed=0, absent=0.2, options=chosen, steps=2).run(backend)
        for terms in (3, 9):
            case = CombinedCase(dtype, shapes[1:], layouts[1:], grad_layouts[1:], terms, seed=1, absent=0.2, steps=1)
            case.run(one_launch)


def run_queue() -> None:
    """Run each of the 8 blocks of a launch on an OS thread of its own: nothing but the kernel's queue orders them."""
    os.environ["CUDA_ON_CPU_THREADS"] = "8"
    for name in ("MTAdam", "BalancedAdam"):
        start_training(name, "cpu", EmulatedCuda(one_launch=True), sizes=(1, 3000)).step()


PARTS = {
    "pcgrad": run_pcgrad,
    "eigen": run_eigen,
    "min_norm": run_min_norm,
    "steps": run_steps,
    "queue": run_queue,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    native.module = load(Path(sys.argv[1]))
    for part in sys.argv[2:]:
        PARTS[part]()
    print("no report")
