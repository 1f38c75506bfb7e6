"""Everything in torch that changes hyper-parameters or averages weights works as it does with torch.optim.Adam."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from tests.support.one_term import KINDS, assert_same, make, make_adam, start, step, train

STEPS = 12
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda o: lrs.StepLR(o, 3, gamma=0.3),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 3, 7], gamma=0.5),
    "ConstantLR": lambda o: lrs.ConstantLR(o, factor=0.25, total_iters=4),
    "LinearLR": lambda o: lrs.LinearLR(o, start_factor=0.2, end_factor=0.9, total_iters=5),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, gamma=0.8),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, total_iters=9, power=1.5),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, T_max=8, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "LambdaLR": lambda o: lrs.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (t + 1)]),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda t: 0.95),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=3, base_momentum=0.5, max_momentum=0.95),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, [0.1, 0.05], total_steps=STEPS + 1),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, factor=0.3, patience=0, threshold=0.3),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.5, 4), lrs.ExponentialLR(o, 0.9)]),
    "SequentialLR": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1, 1.0, 5), lrs.StepLR(o, 2)], [5]),
    "SWALR": lambda o: SWALR(o, swa_lr=0.2, anneal_epochs=5),
}


def two_groups(of: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": of[:1]}, {"params": of[1:], "lr": torch.tensor(0.02, dtype=torch.float64)}]


def scheduled(optimizer: Any, params: list[nn.Parameter], name: str) -> list[tuple[float, float]]:
    """Train with a scheduler, and return the learning rate and the first beta of each group before each step."""
    scheduler, seen = SCHEDULERS[name](optimizer), list[tuple[float, float]]()

    def after(loss: Tensor) -> None:
        seen.extend((float(group["lr"]), group["betas"][0]) for group in optimizer.param_groups)
        scheduler.step(*[loss] * (name == "ReduceLROnPlateau"))

    train(optimizer, params, STEPS, after)
    return seen


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_scheduler_trains_as_with_adam(kind: str, name: str) -> None:
    ours, theirs, constant = start(), start(), start()
    options: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.99)}
    optimizer, adam = make(kind, two_groups(ours), **options), make_adam(kind, two_groups(theirs), **options)
    seen = scheduled(optimizer, ours, name)
    assert seen == scheduled(adam, theirs, name)
    assert len(set(seen)) > 2
    assert_same(ours, theirs)
    assert type(optimizer.param_groups[1]["lr"]) is type(adam.param_groups[1]["lr"])
    train(make(kind, two_groups(constant), **options), constant, STEPS)
    with pytest.raises(AssertionError):  # the schedule has reached the steps
        assert_same(constant, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cycled_momentum_reaches_the_step(kind: str) -> None:
    def run(optimizer: Any, params: list[nn.Parameter], cycle: bool) -> list[nn.Parameter]:
        scheduler = lrs.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1, cycle_momentum=cycle)
        train(optimizer, params, STEPS, lambda _: scheduler.step())
        return params

    theirs, (ours, other) = start(), (start(), start())
    run(make_adam(kind, theirs), theirs, True)
    assert_same(run(make(kind, ours), ours, True), theirs)
    with pytest.raises(AssertionError):
        assert_same(run(make(kind, other), other, False), theirs)


@pytest.mark.parametrize("name", ["OneCycleLR", "ReduceLROnPlateau", "SequentialLR"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_is_resumed(kind: str, name: str) -> None:
    """Optimizer and scheduler are saved in the middle, and end where Adam ends without a pause."""
    metric = [2.0, 1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]

    def part(optimizer: Any, scheduler: Any, params: list[nn.Parameter], steps: range) -> None:
        values = ([m] * (name == "ReduceLROnPlateau") for m in metric[steps.start : steps.stop])
        train(optimizer, params, len(steps), lambda _: scheduler.step(*next(values)))

    theirs, ours = start(), start()
    adam = make_adam(kind, two_groups(theirs), lr=0.05)
    part(adam, SCHEDULERS[name](adam), theirs, range(STEPS))
    first = make(kind, two_groups(ours), lr=0.05)
    schedule = SCHEDULERS[name](first)
    part(first, schedule, ours, range(6))
    saved = copy.deepcopy((first.state_dict(), schedule.state_dict()))
    again = [nn.Parameter(p.detach().clone()) for p in ours]
    second = make(kind, two_groups(again), lr=0.05)
    resumed = SCHEDULERS[name](second)
    second.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    part(second, resumed, again, range(6, STEPS))
    assert_same(again, theirs)
    with pytest.raises(AssertionError):
        assert_same(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_warns_of_a_schedule_before_the_first_step(kind: str) -> None:
    params = start()
    optimizer = make(kind, params)
    scheduler = lrs.StepLR(optimizer, 3)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
    optimizer = make(kind, params)
    scheduler = lrs.StepLR(optimizer, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(optimizer, params, 3, lambda _: scheduler.step())


AVERAGES = {"mean": get_swa_multi_avg_fn, "exponential": lambda: get_ema_multi_avg_fn(0.8)}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_averaged_weights(kind: str, average: str) -> None:
    """The averages of torch.optim.swa_utils are of the weights that the steps have made, without a share in them."""
    inputs = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(maker: Callable[..., Any], lr: float) -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
        optimizer = maker(kind, model.parameters(), lr=lr)
        averaged = AveragedModel(model, multi_avg_fn=AVERAGES[average]())
        for batch in inputs:
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            step(optimizer)
            averaged.update_parameters(model)
        update_bn(inputs, averaged)
        return list(model.parameters()), [*averaged.module.parameters(), averaged.module.get_buffer("1.running_mean")]

    last, ours = run(make, 0.05)
    _, theirs = run(make_adam, 0.05)
    _, frozen = run(make, 0.0)
    assert_same(ours, theirs)
    with pytest.raises(AssertionError):
        assert_same(ours, last + ours[-1:])
    with pytest.raises(AssertionError):
        assert_same(frozen, theirs)
