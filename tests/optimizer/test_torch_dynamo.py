"""Whole trainings inside torch.compile'd functions, optimizer and scheduler included, end as eager Adam does."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from tests.support.one_term import KINDS, assert_same, loss_of, make, make_adam, start, step, train

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend="eager")


def eager(kind: str, steps: int, **options: Any) -> list[nn.Parameter]:
    """Return parameters that Adam has trained."""
    params = start()
    train(make_adam(kind, params, **options), params, steps)
    return params


@every_kind
def test_an_optimizer_made_in_a_compiled_function(kind: str) -> None:
    def run(params: list[nn.Parameter], lr: float) -> Any:
        optimizer = make(kind, params, lr=lr)
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.backward({"loss": loss_of(params)})
            optimizer.step()
        return optimizer

    params, other = start(), start()
    optimizer = compiled(run)(params, 0.05)
    theirs = eager(kind, 5, lr=0.05)
    train(optimizer, params, 2)
    assert_same(params, theirs)
    compiled(run)(other, 0.06)
    with pytest.raises(AssertionError):
        assert_same(other, eager(kind, 3, lr=0.05))


@every_kind
def test_a_compiled_step_with_a_closure_hooks_and_a_scheduler(kind: str) -> None:
    params, theirs, calls = start(), start(), []
    rate = torch.tensor(0.05, dtype=torch.float64)
    optimizer, adam = make(kind, params, lr=rate), make_adam(kind, theirs, lr=0.05)
    schedulers = [ExponentialLR(optimizer, 0.8), ExponentialLR(adam, 0.8)]
    optimizer.register_step_post_hook(lambda *_: calls.append("stepped"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        with optimizer.term("loss"):
            loss = loss_of(params)
            loss.backward()
        return loss

    def advance() -> Tensor:
        loss = optimizer.step(closure)
        schedulers[0].step()
        return loss

    function = compiled(advance)
    values = [function().item() for _ in range(5)]
    expected: list[float] = []
    for _ in range(5):
        train(adam, theirs, 1, lambda loss: expected.append(loss.item()))
        schedulers[1].step()
    assert values == pytest.approx(expected, rel=1e-9)
    assert calls == ["stepped"] * 5
    assert_same(params, theirs)


@every_kind
def test_saving_and_loading_in_a_compiled_function(kind: str) -> None:
    params = start()
    first, second = make(kind, params, lr=0.05), make(kind, params)

    def hand_over() -> None:
        for _ in range(2):
            loss_of(params).backward()
            step(first)
        second.load_state_dict(first.state_dict())
        loss_of(params).backward()
        step(second)

    compiled(hand_over)()
    assert_same(params, eager(kind, 3, lr=0.05))
    assert all(state["step"] == 3 for state in second.state.values())


@every_kind
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")  # pickle, and it calls ours
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_in_a_compiled_function(kind: str, copied: Callable[[Any], Any]) -> None:
    params = start()
    optimizer = make(kind, params, lr=0.05)
    train(optimizer, params, 2)
    again = compiled(lambda: copied(optimizer))()
    others = again.param_groups[0]["params"]
    train(again, others, 2)
    assert_same(others, eager(kind, 4, lr=0.05))
    assert_same(params, eager(kind, 2, lr=0.05))
