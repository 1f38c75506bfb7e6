"""Scaled losses: a GradScaler unscales the gradients of all terms, and steps or does not."""

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.backends import ReferenceBackend
from mtadam_fused.rules import GradNorm, Rule
from oracles.tolerances import same
from tests.support.cases import fewer
from tests.support.grad_scaler import check_scaled_steps
from tests.support.small_problem import OPTIMIZERS


class ByLosses(Rule):
    needs_losses = True

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        return losses


MAKERS: dict[str, Callable[..., Any]] = {
    "MTAdam": MTAdam,
    "CombinedAdam": lambda params, **options: CombinedAdam(params, ByLosses(), **options),
}


def model_and_losses() -> tuple[nn.Linear, Callable[[], dict[str, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    return model, lambda: {"a": model(x).square().mean(), "b": 10 * model(x).abs().mean()}


def scaler_of(scale: float = 1024.0) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)  # twice the scale after each step


def train(name: str, backend: str, step: Callable[[Any, dict[str, Tensor]], None]) -> tuple[list[Tensor], Any]:
    model, losses = model_and_losses()
    optimizer = MAKERS[name](model.parameters(), lr=0.1, backend=backend)
    for _ in range(4):
        optimizer.zero_grad()
        step(optimizer, losses())
    return [p.detach() for p in model.parameters()], optimizer


def step_plain(optimizer: Any, losses: dict[str, Tensor]) -> None:
    optimizer.backward(losses)
    optimizer.step()


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_scaled_training_is_unscaled_training(name: str, unscale_first: bool, backend: str) -> None:
    scaler = scaler_of()

    def step_scaled(optimizer: Any, losses: dict[str, Tensor]) -> None:
        given = {name: scaler.scale(loss) for name, loss in losses.items()}
        values = [loss.item() for loss in given.values()]
        optimizer.backward(given)
        if unscale_first:
            scaler.unscale_(optimizer.scaled)
        scaler.step(optimizer.scaled)
        scaler.update()
        assert values == [loss.item() for loss in given.values()]  # the user's are left alone

    expected, reference = train(name, backend, step_plain)
    params, optimizer = train(name, backend, step_scaled)
    assert same(params, expected)  # powers of two
    assert scaler.get_scale() == 1024 * 2**4
    if name == "MTAdam":
        assert torch.equal(optimizer.running_norms()["b"], reference.running_norms()["b"])

    scales = iter((1024, 2048, 4096, 8192))

    def step_never_unscaled(optimizer: Any, losses: dict[str, Tensor]) -> None:
        scale = next(scales)
        step_plain(optimizer, {name: scale * loss for name, loss in losses.items()})

    assert not same(train(name, backend, step_never_unscaled)[0], expected)


@pytest.mark.parametrize("name", MAKERS)
def test_a_gradient_that_is_not_finite_skips_the_step(name: str, backend: str) -> None:
    model, losses = model_and_losses()
    optimizer = MAKERS[name](model.parameters(), lr=0.1, backend=backend)
    scaler = scaler_of()
    step_plain(optimizer, losses())
    params = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    with optimizer.term("a", losses()["a"]):
        scaler.scale(losses()["a"]).backward()
        assert model.weight.grad is not None
        model.weight.grad[0, 0] = torch.inf
    scaler.step(optimizer.scaled)
    scaler.update()
    assert same(model.parameters(), params)
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0, equal_nan=True)
    assert scaler.get_scale() == 512
    optimizer.zero_grad()
    optimizer.backward({name: scaler.scale(loss) for name, loss in losses().items()})
    scaler.step(optimizer.scaled)
    scaler.update()
    assert not same(model.parameters(), params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_and_skips(name: str, dtype: torch.dtype, backend: str) -> None:
    check_scaled_steps(name, backend, dtype=dtype, sizes=(1, 7, fewer(4097, backend)))


def test_options_that_wait_step_and_skip(backend: str) -> None:
    check_scaled_steps("MTAdam", backend, sizes=(1, 7), keep_combined_grad=True)
    check_scaled_steps("MTAdam", backend, sizes=(1, 7), check_finite=True)


class OwnBackend(ReferenceBackend):
    """A backend that knows nothing of GradScaler."""

    name = "own"


def test_who_waits(backend: str) -> None:
    params = [nn.Parameter(torch.ones(2))]

    class Counting(ByLosses):
        def state_dict(self) -> dict[str, Any]:
            return {"count": 1}

    for optimizer in (MTAdam(params, backend=backend), CombinedAdam(params, ByLosses(), backend=backend)):
        assert optimizer.scaled._step_supports_amp_scaling == (backend != "reference")
    for optimizer in (
        MTAdam(params, backend=backend, keep_combined_grad=True),
        MTAdam(params, backend=backend, check_finite=True),
        MTAdam(params, backend=OwnBackend()),
        CombinedAdam(params, GradNorm(), backend=backend),
        CombinedAdam(params, Counting(), backend=backend),
    ):
        assert not optimizer.scaled._step_supports_amp_scaling


def test_a_backend_of_ones_own() -> None:
    check_scaled_steps("MTAdam", OwnBackend(), sizes=(1, 7))


def test_after_an_error_the_step_can_be_made_again(backend: str) -> None:
    expected, _ = train("MTAdam", backend, step_plain)
    scaler = scaler_of()

    def step_twice(optimizer: Any, losses: dict[str, Tensor]) -> None:
        optimizer.backward({name: scaler.scale(loss) for name, loss in losses.items()})
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match="lr"):
            scaler.step(optimizer.scaled)
        optimizer.param_groups[0]["lr"] = 0.1
        scaler.step(optimizer.scaled)
        scaler.update()

    assert same(train("MTAdam", backend, step_twice)[0], expected)


def test_several_optimizers_and_one_scaler(backend: str) -> None:
    scaler = scaler_of()
    optimizers = []
    for _ in range(3):
        model, losses = model_and_losses()
        optimizer = MTAdam(model.parameters(), lr=0.1, backend=backend)
        optimizer.backward({name: scaler.scale(loss) for name, loss in losses().items()})
        optimizers.append((optimizer, model))
    before = [p.detach().clone() for p in model.parameters()]
    for optimizer, _ in optimizers:
        scaler.step(optimizer.scaled)
    scaler.update()
    for _, model in optimizers:
        assert not same(model.parameters(), before)
    assert scaler.get_scale() == 2048


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_the_optimizer_in_the_place_of_its_view(name: str, unscale_first: bool, backend: str) -> None:
    model, losses = model_and_losses()
    optimizer = MAKERS[name](model.parameters(), lr=0.1, backend=backend)
    scaler = scaler_of()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.backward({name: scaler.scale(loss) for name, loss in losses().items()})
    if unscale_first:
        scaler.unscale_(optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"they wait in the optimizer; call scaler.step\(optimizer.scaled\)"):
            scaler.step(optimizer)
    assert same(model.parameters(), before)
    scaler.step(optimizer.scaled)
    scaler.update()
    assert not same(model.parameters(), before)
    optimizer.zero_grad()
    off = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.backward(losses())
    after = [p.detach().clone() for p in model.parameters()]
    off.step(optimizer)  # a scaler that is off only calls step()
    assert not same(model.parameters(), after)


@pytest.mark.parametrize("name", MAKERS)
def test_clipping_what_is_scaled_leaves_the_losses_alone(name: str, backend: str) -> None:
    seen = []

    class Seeing(ByLosses):
        def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
            seen.append(losses.tolist())
            return torch.ones_like(losses)

    model, losses = model_and_losses()
    make = MTAdam if name == "MTAdam" else lambda params, **options: CombinedAdam(params, Seeing(), **options)
    optimizer: Any = make(model.parameters(), lr=0.1, backend=backend)
    scaler = scaler_of()
    given = losses()
    optimizer.backward({name: scaler.scale(loss) for name, loss in given.items()})
    scaler.unscale_(optimizer.scaled)
    stand_ins = [tensor for group in optimizer.scaled.param_groups for tensor in group["params"]]
    assert len(stand_ins) == 2 * len(list(model.parameters()))  # gradients of two terms, and nothing else
    torch.nn.utils.clip_grad_norm_(stand_ins, 1e-3)
    scaler.step(optimizer.scaled)
    if seen:
        assert seen == [[loss.item() for loss in given.values()]]


def test_what_is_scaled_holds_no_optimizer(backend: str) -> None:
    optimizer = MTAdam([nn.Parameter(torch.ones(2))], backend=backend)
    scaled = optimizer.scaled
    assert scaled is optimizer.scaled
    assert copy.copy(optimizer).scaled is not scaled
    gc.disable()  # no cycle either
    try:
        del optimizer
        with pytest.raises(RuntimeError, match="the optimizer of this GradScaler view was deleted"):
            scaled.step()
    finally:
        gc.enable()
