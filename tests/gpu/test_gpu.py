"""Every backend with kernels for GPUs, on one: ``pytest -m gpu``. One that cannot be used there is skipped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtadam_fused import CombinedAdam, MTAdam, Recorder
from mtadam_fused import weighting as w
from mtadam_fused.backends import CudaBackend, statuses
from mtadam_fused.distributed.dtensor import to_locals
from mtadam_fused.rules.kernels import Kernel, kernel_for
from oracles.tolerances import TooFar, same
from tests.support.cases import DTYPES, LAYOUTS, Case, CombinedCase, check_combined_gradients, every_choice
from tests.support.cuda_graphs import captured
from tests.support.eigen import check_eigen
from tests.support.golden import NAMES, check_trace
from tests.support.grad_scaler import check_scaled_steps
from tests.support.min_norm import check_min_norm
from tests.support.pcgrad import check_against_torch
from tests.support.small_problem import OPTIMIZERS, Training, start_training
from tests.support.stages import check_other_norms, check_products_beyond_float32, check_stages

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ONE: dict[str, Any] = {"layouts": ("contiguous",), "grad_layouts": ("contiguous",), "seed": 1, "device": "cuda"}

CHECKS_OF_RULES: dict[str, Callable[[Kernel, str], None]] = {
    "pcgrad": check_against_torch,
    "symmetric_eigen": check_eigen,
    "min_norm": check_min_norm,
}

in_one_launch_too = pytest.mark.parametrize("gpu_backend", ["cuda", "cuda-one-launch", "triton"], indirect=True)


@pytest.fixture
def backend(gpu_backend: str) -> str:
    return gpu_backend


@in_one_launch_too
@pytest.mark.parametrize("name", NAMES)
def test_golden_trace(name: str, backend: str) -> None:
    check_trace(name, backend, "cuda")


@in_one_launch_too
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype, backend: str) -> None:
    """Small, with tensors of odd and of many elements: what the sanitizer looks at."""
    shapes = ((3,), (5, 7), (2, 3, 4, 5), (129, 33))
    case = Case(dtype, shapes, (layout,) * len(shapes), (layout,) * len(shapes), 2, seed=0, device="cuda")
    case.run(backend)
    CombinedCase.like(case).run(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", [1, 3, 8, 64])
def test_large_tensor(dtype: torch.dtype, terms: int, backend: str) -> None:
    case = Case(dtype=dtype, shapes=((1000, 1025 if terms < 64 else 41),), terms=terms, steps=2, **ONE)
    case.run(backend)
    CombinedCase.like(case).run(backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", Case.FAULTS)
def test_faults_are_rejected(dtype: torch.dtype, fault: str, backend: str) -> None:
    case = Case.showing(fault, dtype, device="cuda")
    case.run(backend)
    with pytest.raises(TooFar):
        case.run(backend, fault=fault)


@in_one_launch_too
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_choice
def test_every_choice(choices: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    Case.choosing(choices, dtype, "cuda").run(backend)


@pytest.mark.parametrize("fault", CombinedCase.FAULTS)
def test_faults_of_the_combined_step_are_rejected(fault: str, backend: str) -> None:
    case = CombinedCase.showing(fault, torch.float32, terms=6, device="cuda")
    case.run(backend)
    with pytest.raises(TooFar):
        case.run(backend, fault=fault)


@in_one_launch_too
def test_stages_one_by_one_are_the_step(backend: str) -> None:
    for name in ("MTAdam", "BalancedAdam"):
        check_stages(backend, "cuda", name=name)
    check_other_norms(backend, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dot_products_beyond_float32(dtype: torch.dtype, gpu_backend: str) -> None:
    check_products_beyond_float32(gpu_backend, dtype, "cuda")


@in_one_launch_too
def test_what_combined_gradients_hold(backend: str) -> None:
    check_combined_gradients(backend, "cuda")


@in_one_launch_too
@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam", "MGDA"])
def test_steps_of_a_grad_scaler(name: str, backend: str) -> None:
    check_scaled_steps(name, backend, "cuda")


@pytest.mark.skipif(not statuses()["cuda"].usable, reason="the CUDA kernels are not usable here")
@pytest.mark.parametrize("name", CHECKS_OF_RULES)
def test_kernels_of_rules(name: str) -> None:
    kernel = kernel_for(name, torch.eye(2, dtype=torch.float64, device="cuda"))
    assert kernel is not None
    CHECKS_OF_RULES[name](kernel, "cuda")


def test_auto_takes_the_best_kernels() -> None:
    best = "cuda" if statuses()["cuda"].usable else "triton"
    assert repr(MTAdam([nn.Parameter(torch.ones(2, device="cuda"))])).endswith(f"(cuda:0: {best})")


@contextmanager
def waiting_raises() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("terms", [3, 8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_never_waits_for_the_device(name: str, terms: int, backend: str) -> None:
    training = start_training(name, "cuda", backend, torch.tensor([0.1], device="cuda"), terms)
    assert isinstance(training.optimizer, (MTAdam, CombinedAdam))
    recorder = Recorder(training.optimizer, every=1)
    with waiting_raises():
        for t in range(3):
            training.optimizer.param_groups[0]["eps"] = 1e-8 * (t + 1)  # a hyper-parameter that has to be copied there
            training.step()
    assert len(recorder.rows()) == 3


@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam", "MGDA"])
def test_a_scaled_step_never_waits_for_the_device(name: str, backend: str) -> None:
    training, scaler = start_training(name, "cuda", backend), torch.amp.GradScaler("cuda")
    with waiting_raises():
        for _ in range(2):
            for k, (grads, loss) in enumerate(zip(training.grads, training.losses, strict=True)):
                with training.optimizer.term(k, scaler.scale(loss)):
                    for p, g in zip(training.params, grads, strict=True):
                        p.grad = scaler.scale(g)
            scaler.step(training.optimizer.scaled)
            scaler.update()


def test_a_wait_is_seen(backend: str) -> None:
    training = start_training("MGDA", "cuda", backend, terms=9)  # of more than eight terms, solved on the host
    with waiting_raises(), pytest.raises(RuntimeError, match="synchronizing"):
        training.step()


def test_a_weighting_never_waits_for_the_device() -> None:
    made: list[w.Weighting] = [w.EqualWeights(), w.RealTimeLoss(), w.InitialLoss(2), w.InitialLoss(values=[1.0, 3.0])]
    made += [w.PriorLoss([1.0, 3.0]), w.Uncertainty(range(2)), w.KendallUncertainty(range(2), ["regression"] * 2)]
    made += [w.GeometricMean(priorities=[1.0, 3.0]), w.STCH(0.5, ideal=[1.0, -2.0]), w.IMTLL(range(2))]
    made += [w.DWA(2), w.SoftAdapt(normalized=True, loss_weighted=True), w.ReLoBRaLo(), w.RandomWeighting()]
    for weighting in made:
        weighting.cuda()
        losses = [torch.tensor(x, device="cuda", requires_grad=True) for x in (2.0, 5.0)]
        expected = weighting([loss.cpu() for loss in losses]).item() if not weighting.state_dict() else None
        with waiting_raises():
            total = weighting(losses)
            weighting({1: losses[1]}).backward()
        assert expected is None or total.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_runs_are_the_same_to_the_bit_also_on_a_side_stream(name: str, backend: str) -> None:
    def run(stream: torch.cuda.Stream) -> list[Tensor]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            training = start_training(name, "cuda", backend)
            for _ in range(5):
                training.step()
        torch.cuda.synchronize()
        return [p.detach() for p in training.params]

    expected = run(torch.cuda.current_stream())
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        assert all(torch.equal(p, q) for p, q in zip(run(stream), expected, strict=True))


@pytest.mark.skipif(not statuses()["cuda"].usable, reason="the CUDA kernels are not usable here")
@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam"])
def test_one_launch_gives_what_three_give(name: str) -> None:
    def run(kernels: CudaBackend) -> list[nn.Parameter]:
        training = start_training(name, "cuda", kernels, terms=4, sizes=(3_000_000, 0, 1, *[5000] * 1100, 1_000_000))
        for _ in range(20):
            training.step()
        assert not kernels._buffers[training.optimizer._table_cache._tables[0]].queue.any()
        return training.params

    for p, q in zip(run(CudaBackend(one_launch=True)), run(CudaBackend()), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """Make a group of this process alone, on NCCL."""
    if not (dist.is_available() and dist.is_nccl_available()):
        pytest.skip("this torch has no NCCL")
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam", "GradNorm"])
def test_averages_over_one_process(name: str, backend: str) -> None:
    averaged, alone = (start_training(name, "cuda", backend, process_group=g) for g in (dist.group.WORLD, None))
    for training in (averaged, alone):
        training.step()
    assert same(averaged.params, alone.params)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam", "GradNorm"])
def test_shards_of_one_process(name: str, backend: str) -> None:
    """The same bits as of parameters in one piece, and no wait for the device."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cuda", (1,))
    dtensor = start_training(name, "cuda", backend, place=lambda t: DTensor.from_local(t, mesh, [Shard(0)]))
    whole = start_training(name, "cuda", backend)
    with waiting_raises():
        dtensor.step()
    whole.step()
    assert same(to_locals(dtensor.params), whole.params)


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
    assert optimizer.running_norms()[0].item() == pytest.approx(n**0.5)


# Captures come last: after one that fails, torch's allocator is not what it was.


def replay_beside_eager(make: Callable[[Tensor], Training]) -> Iterator[tuple[Tensor, Tensor]]:
    """Return each parameter after 20 replays of a captured step, and after as many eager ones; each at another rate."""
    eager_lr, graph_lr = torch.tensor(0.1, device="cuda"), torch.tensor(0.1, device="cuda")
    eager, replayed = make(eager_lr), make(graph_lr)
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        replayed.step()
    for t in range(20):
        eager_lr.fill_(0.1 / (t + 1))
        graph_lr.fill_(0.1 / (t + 1))
        eager.step()
        graph.replay()
    return zip(replayed.params, eager.params, strict=True)


@in_one_launch_too
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_graph_replay_is_the_eager_run(name: str, backend: str) -> None:
    assert all(torch.equal(p, q) for p, q in replay_beside_eager(lambda lr: start_training(name, "cuda", backend, lr)))


@in_one_launch_too
@pytest.mark.parametrize("tensors", [400, 1500])
def test_graph_replay_of_many_tensors_is_the_eager_run(tensors: int, backend: str) -> None:
    """The argument of a launch takes 478 addresses, a longer one 4,060."""
    sizes = (1000,) * tensors
    assert all(
        torch.equal(p, q)
        for p, q in replay_beside_eager(lambda lr: start_training("MTAdam", "cuda", backend, lr, sizes=sizes))
    )


def test_graph_replay_of_gradients_of_mixed_types_is_the_eager_run(backend: str) -> None:
    def make(lr: Tensor) -> Training:
        training = start_training("MTAdam", "cuda", backend, lr, dtype=torch.bfloat16)
        if not hasattr(training.params[0], "grad_dtype"):
            pytest.skip("this torch keeps gradients in the type of the parameter")
        for p in training.params:
            p.grad_dtype = None
        training.grads[1] = [g.float() for g in training.grads[1]]
        training.step()
        return training

    assert all(torch.equal(p, q) for p, q in replay_beside_eager(make))


def test_a_graph_keeps_its_hyperparameters_and_gradients_whatever_is_done_between_replays(backend: str) -> None:
    def run(replayed: bool) -> list[nn.Parameter]:
        training = start_training("MTAdam", "cuda", backend, 0.1)
        group = training.optimizer.param_groups[0]
        graph = torch.cuda.CUDAGraph()
        group["lr"] = 0.05
        if replayed:
            with captured(graph):
                training.step()
        for _ in range(3):
            group["lr"] = 0.05
            graph.replay() if replayed else training.step()
            group["lr"] = 0.2
            training.step(times=2.0)
        return training.params

    for p, q in zip(run(True), run(False), strict=True):
        assert torch.equal(p, q)
