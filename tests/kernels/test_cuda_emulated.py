"""The CUDA kernels' real source, compiled for the CPU behind native/cuda_on_cpu.h, through the whole optimizer.

What this cannot show is that the kernels run on a GPU, and how fast: that is for machines that have one.
"""

import shutil
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from mtadam_fused.backends import Backend, native
from oracles.tolerances import TooFar
from tests.support.cases import (
    DTYPES,
    LAYOUTS,
    Case,
    CombinedCase,
    check_combined_gradients,
    check_wide_gradients,
    every_choice,
)
from tests.support.cuda_emulator import EmulatedCuda, build, load
from tests.support.eigen import check_eigen
from tests.support.golden import NAMES, check_trace
from tests.support.grad_scaler import check_scaled_steps
from tests.support.min_norm import check_min_norm
from tests.support.pcgrad import check_kernel
from tests.support.small_problem import OPTIMIZERS, start_training
from tests.support.stages import check_other_norms, check_products_beyond_float32, check_stages
from tests.support.strategies import cases

EXAMPLES = 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="no g++ to compile the kernels with"),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return load(build(tmp_path_factory.mktemp("emulated")))


@pytest.fixture
def cuda(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Backend:
    """Return a backend that runs the emulated kernels."""
    monkeypatch.setattr(native, "module", emulated)
    return EmulatedCuda(one_launch=getattr(request, "param", False))


in_either_way = pytest.mark.parametrize("cuda", [False, True], indirect=True, ids=["three launches", "one launch"])


@in_either_way
@pytest.mark.parametrize("name", NAMES)
def test_golden_trace(name: str, cuda: Backend) -> None:
    check_trace(name, cuda, "cpu")


ANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@in_either_way
@ANY
@given(case=cases())
def test_any_case(case: Case, cuda: Backend) -> None:
    case.run(cuda)


@ANY
@given(case=cases())
def test_any_combined_case(case: Case, cuda: Backend) -> None:
    CombinedCase.like(case).run(cuda)


ONE: dict[str, Any] = {"layouts": ("contiguous",), "grad_layouts": ("contiguous",), "seed": 1}


@in_either_way
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, cuda: Backend) -> None:
    shapes = ((3,), (5, 7), (2, 3, 4, 5))
    Case(torch.float64, shapes, (layout,) * 3, (layout,) * 3, terms=2, seed=0).run(cuda)


@in_either_way
@pytest.mark.parametrize("elements", [1024, 8192])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_chunks(dtype: torch.dtype, elements: int, cuda: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtadam_fused.backends.device.LEAST_ELEMENTS", elements)
    case = Case(dtype, ((3 * 8192 + 5,),), terms=5, steps=2, **ONE)
    case.run(cuda)
    CombinedCase.like(case).run(cuda)


@in_either_way
def test_more_addresses_than_one_launch_takes(cuda: Backend) -> None:
    shapes = ((1,), (3,), (7,)) * 100
    contiguous = ("contiguous",) * len(shapes)
    Case(torch.float32, shapes, contiguous, contiguous, terms=16, seed=2, absent=0.3, steps=2).run(cuda)


@in_either_way
def test_more_terms_than_a_block_has_threads(cuda: Backend) -> None:
    Case(torch.float32, ((3,),), terms=300, steps=2, **ONE).run(cuda)


def test_it_is_the_cuda_kernels_that_run(cuda: Backend) -> None:
    optimizer = Case(torch.float32, ((5,),), terms=2, **ONE).run(cuda)
    assert repr(optimizer).endswith("(cpu: cuda)")


@in_either_way
@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam"])
def test_stages_one_by_one_are_the_step(name: str, cuda: Backend) -> None:
    check_stages(cuda, name=name)
    check_stages(cuda, name=name, sizes=(1, 3, 7) * 100, terms=16)  # more addresses than one launch takes


@in_either_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam", "MGDA"])
def test_steps_of_a_grad_scaler(name: str, dtype: torch.dtype, cuda: Backend) -> None:
    check_scaled_steps(name, cuda, dtype=dtype)


def test_norms_can_be_replaced_before_they_are_balanced(cuda: Backend) -> None:
    check_other_norms(cuda)


@in_either_way
def test_what_combined_gradients_hold(cuda: Backend) -> None:
    check_combined_gradients(cuda)


@in_either_way
def test_wide_gradients(cuda: Backend) -> None:
    check_wide_gradients(cuda)


@pytest.mark.parametrize("fault", Case.FAULTS)
def test_faults_are_rejected(fault: str, cuda: Backend) -> None:
    case = Case.showing(fault, torch.float32)
    case.run(cuda)
    with pytest.raises(TooFar):
        case.run(cuda, fault=fault)


@in_either_way
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_choice
def test_every_choice(choices: dict[str, Any], dtype: torch.dtype, cuda: Backend) -> None:
    Case.choosing(choices, dtype).run(cuda)


@pytest.mark.parametrize("terms", [1, 3, 4, 5, 6, 7, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_products_of_many_terms(dtype: torch.dtype, terms: int, cuda: Backend) -> None:
    shapes, layouts = ((2 * 8192 + 5,), (3, 7), (0,)), ("contiguous", "offset", "contiguous")
    CombinedCase(dtype, shapes, layouts, layouts, terms, seed=3, absent=0.2, steps=2).run(cuda)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dot_products_beyond_float32(dtype: torch.dtype, cuda: Backend) -> None:
    check_products_beyond_float32(cuda, dtype)


def test_dot_products_of_more_addresses_than_one_launch_takes(cuda: Backend) -> None:
    shapes = ((1,), (3,), (7,)) * 100
    contiguous = ("contiguous",) * len(shapes)
    CombinedCase(torch.float32, shapes, contiguous, contiguous, terms=14, seed=2, absent=0.3, steps=2).run(cuda)


@in_either_way
@pytest.mark.parametrize("rows", [239, 240])
def test_both_sizes_of_the_argument(rows: int, cuda: Backend) -> None:
    contiguous = ("contiguous",) * rows
    Case(torch.float32, ((3,),) * rows, contiguous, contiguous, terms=2, seed=4, steps=1).run(cuda)


def test_pcgrad(emulated: ModuleType) -> None:
    check_kernel(lambda args: emulated.cuda_pcgrad(args, 0, 0))


def test_min_norm(emulated: ModuleType) -> None:
    check_min_norm(lambda args: emulated.cuda_min_norm(args, 0, 0))


def test_symmetric_eigen(emulated: ModuleType) -> None:
    check_eigen(lambda args: emulated.cuda_symmetric_eigen(args, 0, 0))


def test_combined_steps_that_miss_parameters(cuda: Backend) -> None:
    options = {"lr": 0.1, "amsgrad": True, "maximize": True, "weight_decay": 0.1}
    layouts = ("contiguous", "offset")
    case = CombinedCase(torch.float32, ((3, 7), (5,)), layouts, layouts, 1, 1, absent=0.5, steps=8, options=options)
    optimizer = case.run(cuda)
    assert all(0 < state["step"] < case.steps for state in optimizer.state.values())


@pytest.mark.parametrize("fault", CombinedCase.FAULTS)
def test_faults_of_the_combined_step_are_rejected(fault: str, cuda: Backend) -> None:
    case = CombinedCase.showing(fault, torch.float32, terms=6)
    case.run(cuda)
    with pytest.raises(TooFar):
        case.run(cuda, fault=fault)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_bits_in_whatever_order_blocks_run(name: str, cuda: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(threads: int) -> list[torch.Tensor]:
        monkeypatch.setenv("CUDA_ON_CPU_THREADS", str(threads))
        training = start_training(name, "cpu", cuda)
        training.step()
        return [p.detach() for p in training.params]

    assert all(torch.equal(p, q) for p, q in zip(run(1), run(3), strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam"])
def test_one_launch_of_many_chunks_gives_the_same_bits_as_three(
    name: str, threads: int, cuda: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(backend: Backend) -> list[nn.Parameter]:
        training = start_training(name, "cpu", backend, terms=5, sizes=(200_000, 0, 300_000, 5, 100_000))
        training.step()
        return training.params

    expected = run(cuda)
    monkeypatch.setenv("CUDA_ON_CPU_THREADS", str(threads))
    assert all(torch.equal(p, q) for p, q in zip(run(EmulatedCuda(one_launch=True)), expected, strict=True))
