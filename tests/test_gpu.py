"""Every backend with kernels for GPUs, on one: ``pytest -m gpu``. One that cannot be used there is skipped."""

from typing import Any

import pytest
import torch
from cases import DTYPES, LAYOUTS, Case, cases
from closeness import TooFar
from formula import FAULTS
from hypothesis import HealthCheck, given, settings
from test_golden import compare_with_trace
from torch import Tensor, nn
from traces import NAMES

from mtadam_fused import MTAdam
from mtadam_fused.backends import statuses

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ONE: dict[str, Any] = {"layouts": ("contiguous",), "grad_layouts": ("contiguous",), "seed": 1, "device": "cuda"}


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    status = statuses()[request.param]
    if not status.usable:
        pytest.skip(status.reason)
    return request.param


@pytest.mark.parametrize("name", NAMES)
def test_golden_trace(name: str, backend: str) -> None:
    compare_with_trace(name, backend, "cuda")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(case=cases(device="cuda"))
def test_any_case(case: Case, backend: str) -> None:
    case.run(backend)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, backend: str) -> None:
    shapes = ((3,), (5, 7), (2, 3, 4, 5))
    Case(torch.float64, shapes, (layout,) * 3, (layout,) * 3, terms=2, seed=0, device="cuda").run(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [1, 3, 64])
def test_large_tensor(dtype: torch.dtype, terms: int, backend: str) -> None:
    Case(dtype=dtype, shapes=((1000, 1025 if terms < 64 else 41),), terms=terms, steps=2, **ONE).run(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(dtype: torch.dtype, fault: str, backend: str) -> None:
    options = {"lr": 0.1, "weight_decay": 0.1} if "decay" in fault else {"lr": 0.01}
    case = Case(dtype=dtype, shapes=((129, 33),), terms=3, options=options, steps=3, **ONE)
    case.run(backend)
    with pytest.raises(TooFar):
        case.run(backend, fault=fault)


def test_auto_takes_the_best_kernels() -> None:
    best = "cuda" if statuses()["cuda"].usable else "triton"
    assert repr(MTAdam([nn.Parameter(torch.ones(2, device="cuda"))])).endswith(f"(cuda:0: {best})")


def model(backend: str, lr: float | Tensor) -> tuple[list[nn.Parameter], list[list[Tensor]], MTAdam]:
    """Some parameters, gradients of three terms, and an optimizer that has made a step."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(n, device="cuda")) for n in (1, 7, 4097, 100_000)]
    grads = [[10.0**k * torch.randn_like(p) for p in params] for k in range(3)]
    optimizer = MTAdam([p.requires_grad_() for p in params], lr=lr, backend=backend)
    take_step(optimizer, params, grads)
    return params, grads, optimizer


def take_step(optimizer: MTAdam, params: list[nn.Parameter], grads: list[list[Tensor]]) -> None:
    for k, of_term in enumerate(grads):
        with optimizer.term(k):
            for p, g in zip(params, of_term, strict=True):
                p.grad = g
    optimizer.step()


def test_a_step_never_waits_for_the_device(backend: str) -> None:
    params, grads, optimizer = model(backend, torch.tensor([0.1], device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in range(3):
            optimizer.param_groups[0]["eps"] = 1e-8 * (t + 1)  # a hyper-parameter that has to be copied there
            take_step(optimizer, params, grads)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_replay_is_the_eager_run(backend: str) -> None:
    rates = [0.1 / (t + 1) for t in range(20)]
    eager_lr, graph_lr = torch.tensor(0.1, device="cuda"), torch.tensor(0.1, device="cuda")
    eager_params, grads, eager = model(backend, eager_lr)
    graph_params, graph_grads, captured = model(backend, graph_lr)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take_step(captured, graph_params, graph_grads)
    for rate in rates:
        eager_lr.fill_(rate)
        graph_lr.fill_(rate)
        take_step(eager, eager_params, grads)
        graph.replay()
    for p, q in zip(eager_params, graph_params, strict=True):
        assert torch.equal(p, q)


def test_a_graph_keeps_its_hyperparameters_and_gradients_whatever_is_done_between_replays(backend: str) -> None:
    def run(replayed: bool) -> list[nn.Parameter]:
        params, grads, optimizer = model(backend, 0.1)
        others = [[2 * g for g in of_term] for of_term in grads]
        graph = torch.cuda.CUDAGraph()
        optimizer.param_groups[0]["lr"] = 0.05
        if replayed:
            with torch.cuda.graph(graph):
                take_step(optimizer, params, grads)
        for _ in range(3):
            optimizer.param_groups[0]["lr"] = 0.05
            graph.replay() if replayed else take_step(optimizer, params, grads)
            optimizer.param_groups[0]["lr"] = 0.2
            take_step(optimizer, params, others)
        return params

    for p, q in zip(run(True), run(False), strict=True):
        assert torch.equal(p, q)


def test_runs_are_the_same_to_the_bit_also_on_a_side_stream(backend: str) -> None:
    def run(stream: torch.cuda.Stream) -> list[Tensor]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            params, grads, optimizer = model(backend, 0.1)
            for _ in range(5):
                take_step(optimizer, params, grads)
        torch.cuda.synchronize()
        return [p.detach() for p in params]

    expected = run(torch.cuda.current_stream())
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        assert all(torch.equal(p, q) for p, q in zip(run(stream), expected, strict=True))


def test_more_elements_than_32_bits_count(backend: str) -> None:
    n = 2**31 + 5
    if torch.cuda.mem_get_info()[0] < 20 * n:
        pytest.skip("needs 43 GB of free device memory")
    p = nn.Parameter(torch.zeros(n, device="cuda"))
    optimizer = MTAdam([p], lr=0.5, backend=backend)
    with optimizer.term(0):
        p.grad = torch.ones(n, device="cuda")
    optimizer.step()
    assert bool((p.detach() == -0.5).all())
    assert optimizer.term_norms()[0].item() == pytest.approx(n**0.5)
