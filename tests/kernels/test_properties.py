"""Random shapes, layouts, types, terms and options against the float64 formula; and large tensors."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from oracles.tolerances import TooFar
from tests.support.cases import DTYPES, LAYOUTS, Case, every_choice, fewer
from tests.support.strategies import cases

ONE: dict[str, Any] = {"layouts": ("contiguous",), "grad_layouts": ("contiguous",), "seed": 1}


def test_any_case(backend: str) -> None:
    @settings(max_examples=fewer(120, backend), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(case=cases())
    def run(case: Case) -> None:
        case.run(backend)

    run()


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_pair_of_layouts(layout: str, grad_layout: str, backend: str) -> None:
    shapes = ((3,), (5, 7), (2, 3, 4, 5))
    layouts, grad_layouts = (layout,) * 3, (grad_layout,) * 3
    Case(torch.float64, shapes, layouts, grad_layouts, terms=2, seed=0).run(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [1, 3])
def test_large_tensor(dtype: torch.dtype, terms: int, backend: str) -> None:
    Case(dtype=dtype, shapes=((fewer(fewer(1000, backend), backend), 1025),), terms=terms, steps=2, **ONE).run(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", Case.FAULTS)
def test_faults_are_rejected(dtype: torch.dtype, fault: str, backend: str) -> None:
    case = Case.showing(fault, dtype)
    case.run(backend)
    with pytest.raises(TooFar):
        case.run(backend, fault=fault)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_choice
def test_every_choice(choices: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    case = Case.choosing(choices, dtype)
    replace(case, steps=fewer(case.steps, backend)).run(backend)
