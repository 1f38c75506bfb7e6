"""The formulas of a step as functions over arrays, in the three languages that state them.

Each takes the arguments of csrc/update_math.h and returns its results, as float64 or float32 arrays. Where C++
takes ``beta`` and ``1 - beta``, these take ``beta``. ``updated_param`` takes the arguments of ``step_factors`` in the
place of its result.
"""

import importlib.util
import subprocess
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pybind11
import torch
from torch import Tensor

from mtadam_fused import reference

TERMS = 4  # consecutive elements that are the terms of a layer
SOURCE = Path(__file__).parents[1] / "kernels" / "native" / "formulas.cpp"

Arrays = list[np.ndarray]
Language = Callable[[str, Arrays, type], Arrays]  # name, arguments and dtype to results


# -- Python ------------------------------------------------------------------------------------------------------------


def anchor_of(norm_avg: Tensor, anchor: Tensor) -> Tensor:
    of_layer = anchor.view(-1, TERMS)[:, :1].long()
    return reference.anchor_of(norm_avg.view(-1, TERMS), of_layer).expand(-1, TERMS).flatten()


def norm_decay(beta3: Tensor, step: Tensor, norms: Tensor) -> Tensor:
    return reference.norm_decay(beta3.double(), step.double(), norms).to(beta3.dtype)


def add_term(grad: Tensor, scale: Tensor, param: Tensor, exp_avg_sq: Tensor, combined: Tensor, *row: Any) -> Any:
    grad_sign, beta2, l2_decay = row
    no_factors = reference.StepFactors(torch.ones(()), torch.ones(()), 0.0, 0.0)
    scalars = reference.RowScalars(grad_sign, 0.0, beta2, l2_decay, no_factors)
    return reference.add_term(grad, scale, param, exp_avg_sq, combined, scalars)


def updated_param(param: Tensor, exp_avg: Tensor, largest: Tensor, *step: Any) -> Tensor:
    """Step element by element, because betas and the step number are scalars in the reference."""
    found = []
    for p, m, v, lr, beta1, beta2, eps, decay, t in zip(param, exp_avg, largest, *step, strict=True):
        factors = reference.step_factors(lr.item(), beta1.item(), beta2.item(), eps.item(), decay.item(), t)
        found.append(reference.updated_param(p, m, v, factors))
    return torch.stack(found)


OF_REFERENCE: dict[str, Callable[..., Any]] = {
    "norm_decay": norm_decay,
    "running_norm": lambda norm_avg, norm, decay, first, peak: reference.running_norm(
        norm_avg, norm, decay, first != 0, peak != 0
    ),
    "anchor_of": anchor_of,
    "add_term": add_term,
    "updated_param": updated_param,
}


def python(name: str, arguments: Arrays, dtype: type) -> Arrays:
    """Evaluate a function of mtadam_fused/reference.py."""
    function = OF_REFERENCE.get(name) or getattr(reference, name)
    results = function(*(torch.from_numpy(argument.astype(dtype)) for argument in arguments))
    return [result.numpy() for result in (results if isinstance(results, tuple) else (results,))]


# -- C++ ---------------------------------------------------------------------------------------------------------------


@cache
def compiled() -> Any:
    """Compile the functions of csrc/update_math.h into a module."""
    with TemporaryDirectory() as folder:
        library = Path(folder) / "formulas.so"
        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", *includes]
        subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True)
        spec = importlib.util.spec_from_file_location("formulas", library)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def cpp(name: str, arguments: Arrays, dtype: type) -> Arrays:
    """Evaluate a function of csrc/update_math.h."""
    evaluate = getattr(compiled(), np.dtype(dtype).name)
    return [np.array(result, dtype) for result in evaluate(name, [a.astype(dtype) for a in arguments])]
