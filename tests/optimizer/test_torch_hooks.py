"""The hooks of torch.optim, of autograd and of the profiler, around our steps and checkpoints."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mtadam_fused import BalancedAdam, MTAdam
from tests.support.one_term import KINDS, assert_same, loss_of, make, make_adam, start, step, train

every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_step_hooks_are_called_in_torchs_order(kind: str) -> None:
    """Global ones enclose those of the optimizer; each is called once for a step, with gradients or without."""
    calls: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda optimizer, args, kwargs: calls.append(name)

    def run(optimizer: Any, params: list[nn.Parameter]) -> list[str]:
        calls.clear()
        handles = [
            register_optimizer_step_pre_hook(note("all, before")),
            register_optimizer_step_post_hook(note("all, after")),
            optimizer.register_step_post_hook(note("after")),
            optimizer.register_step_pre_hook(note("before")),
            optimizer.register_step_pre_hook(note("before, second")),
        ]
        train(optimizer, params, 1)
        optimizer.step()
        handles.pop().remove()
        optimizer.step()
        for handle in handles:
            handle.remove()
        optimizer.step()
        return list(calls)

    params = start()
    found = run(make(kind, params), params)
    assert found == run(torch.optim.Adam(params), params)
    assert len(found) == 5 + 5 + 4


@every_kind
def test_step_hooks_see_the_step(kind: str) -> None:
    """The parameters change between them, and a hook before the step may give it another closure."""
    params, seen = start(), []
    optimizer = make(kind, params)

    def closure(value: float) -> float:
        for p in params:
            p.grad = None
        with optimizer.term("loss"):
            loss_of(params).backward()
        return value

    def before(optimizer: Any, args: Any, kwargs: Any) -> Any:
        seen.append(params[0].detach().clone())
        return (*args[:-1], lambda: closure(2.0)), kwargs

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: seen.append(params[0].detach().clone()))
    assert optimizer.step(lambda: closure(1.0)) == 2.0
    assert not torch.equal(*seen)
    assert torch.equal(seen[1], params[0])


@pytest.mark.parametrize("order", [(MTAdam, BalancedAdam), (BalancedAdam, MTAdam)])
def test_hooks_of_a_subclass_are_called_once(order: tuple[type[MTAdam], ...]) -> None:
    """Torch wraps step() class by class when an optimizer is made."""
    calls: list[type] = []

    class Own(MTAdam):
        pass

    made = [kind(start()) for kind in (*order, Own)]
    for optimizer in made:
        optimizer.register_step_pre_hook(lambda optimizer, *_: calls.append(type(optimizer)))
        optimizer.step()
    assert calls == [*order, Own]


@every_kind
def test_hooks_of_state_dict(kind: str) -> None:
    """One before may change the optimizer, one after returns another dict or changes it in place."""
    optimizer = make(kind, start(), lr=0.1)

    def halve_rate(optimizer: Any) -> None:
        optimizer.param_groups[0]["lr"] /= 2

    def add_version(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
        return {**saved, "version": 1}

    def raise_version(_: Any, saved: dict[str, Any]) -> None:
        saved["version"] += 1

    handles = [
        optimizer.register_state_dict_pre_hook(halve_rate),
        optimizer.register_state_dict_post_hook(raise_version),
        optimizer.register_state_dict_post_hook(add_version, prepend=True),
    ]
    saved = optimizer.state_dict()
    assert saved["version"] == 2
    assert saved["param_groups"][0]["lr"] == 0.05
    for handle in handles:
        handle.remove()
    assert "version" not in optimizer.state_dict()
    assert optimizer.param_groups[0]["lr"] == 0.05


@every_kind
def test_hooks_of_load_state_dict(kind: str) -> None:
    """The last one before loading wins, changes nothing of the saver's, and those after see what was loaded."""
    params = start()
    optimizer = make(kind, params, lr=0.1)
    saved = copy.deepcopy(optimizer.state_dict())
    seen = []

    def replace_rate(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "param_groups": [{**group, "lr": 0.2} for group in state["param_groups"]]}

    def raise_rate(_: Any, state: dict[str, Any]) -> None:
        state["param_groups"] = [{**group, "lr": group["lr"] + 0.5} for group in state["param_groups"]]

    optimizer.register_load_state_dict_post_hook(lambda optimizer: seen.append(optimizer.param_groups[0]["lr"]))
    optimizer.register_load_state_dict_pre_hook(raise_rate)
    optimizer.load_state_dict(saved)
    first = optimizer.register_load_state_dict_pre_hook(replace_rate, prepend=True)
    optimizer.load_state_dict(saved)
    first.remove()
    optimizer.register_load_state_dict_pre_hook(replace_rate)
    optimizer.load_state_dict(saved)
    assert seen == [0.6, 0.7, 0.2]
    assert saved["param_groups"][0]["lr"] == 0.1


@every_kind
def test_a_hook_can_repair_a_checkpoint_before_it_is_checked(kind: str) -> None:
    """As when a checkpoint has other names, or another order of parameters: hooks see plain tensors, and come first."""
    theirs, params = start(), start()
    train(make_adam(kind, theirs, lr=0.05), theirs, 6)
    first = make(kind, params, lr=0.05)
    train(first, params, 3)
    saved = copy.deepcopy(first.state_dict())
    saved["state"] = {
        i: {"momentum" if k == "exp_avg" else k: v for k, v in s.items()} for i, s in saved["state"].items()
    }

    def repair(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        assert all(isinstance(s["momentum"], Tensor) for s in state["state"].values())
        repaired = {i: {"exp_avg": s["momentum"], **s} for i, s in state["state"].items()}
        for of_param in repaired.values():
            del of_param["momentum"]
        return {**state, "state": repaired}

    second = make(kind, params, lr=0.05)
    with pytest.raises(ValueError, match="exp_avg"):
        second.load_state_dict(saved)
    second.register_load_state_dict_pre_hook(repair)
    second.load_state_dict(saved)
    train(second, params, 3)
    assert_same(params, theirs)


@every_kind
def test_a_failing_hook_changes_nothing(kind: str) -> None:
    params, theirs = start(), start()
    train(make_adam(kind, theirs), theirs, 4)
    optimizer = make(kind, params)
    train(optimizer, params, 2)

    def refuse(*_: Any) -> None:
        raise LookupError

    handle = optimizer.register_load_state_dict_pre_hook(refuse)
    with pytest.raises(LookupError):
        optimizer.load_state_dict(optimizer.state_dict())
    handle.remove()
    handle = optimizer.register_step_pre_hook(refuse)
    loss_of(params).backward()
    with pytest.raises(LookupError):
        step(optimizer)
    handle.remove()
    optimizer.step()  # the gradients still wait
    train(optimizer, params, 1)
    assert_same(params, theirs)


@every_kind
def test_steps_in_the_backward_pass(kind: str) -> None:
    """An optimizer for each parameter steps as soon as its gradient is there, from a hook of the parameter."""
    theirs, params = start(), start()
    train(make_adam(kind, theirs, lr=0.05), theirs, 6)
    optimizers = {p: make(kind, [p], lr=0.05) for p in params}
    for p in params:
        p.register_post_accumulate_grad_hook(lambda p: step(optimizers[p]))
    for _ in range(6):
        loss_of(params).backward()
        assert all(p.grad is None for p in params)
    assert_same(params, theirs)


@every_kind
def test_a_hook_of_a_parameter_changes_the_gradient_of_each_term(kind: str) -> None:
    """What it leaves in ``p.grad`` is what the step takes, in backward() and in a term() block."""

    def clamp(p: Tensor) -> None:
        p.grad = p.grad.clamp(-1, 2) if p.grad is not None else None

    def run(optimizer: Any, params: list[nn.Parameter], hooked: bool) -> None:
        for p in params * hooked:
            p.register_post_accumulate_grad_hook(clamp)
        for t in range(6):
            if t % 2 and not isinstance(optimizer, torch.optim.Adam):
                optimizer.backward({"loss": loss_of(params)})
                optimizer.step()
            else:
                train(optimizer, params, 1)

    theirs, ours, plain = start(), start(), start()
    run(make_adam(kind, theirs, lr=0.05), theirs, True)
    run(make(kind, ours, lr=0.05), ours, True)
    run(make(kind, plain, lr=0.05), plain, False)
    assert_same(ours, theirs)
    with pytest.raises(AssertionError):
        assert_same(plain, theirs)


@every_kind
@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_torchs_clipping_inside_a_term(kind: str, clip: Callable[..., Any]) -> None:
    """Torch's functions clip a term's gradients before its block ends, as they do before a step of Adam."""

    def run(optimizer: Any, params: list[nn.Parameter], largest: float) -> None:
        for t in range(5):
            optimizer.zero_grad()
            with nullcontext() if isinstance(optimizer, torch.optim.Adam) else optimizer.term("loss"):
                (loss_of(params) / (t + 1) ** 2).backward()  # so that the norms do not stay at their peak
                clip(params, largest)
            optimizer.step()

    theirs, ours, other = start(), start(), start()
    options: dict[str, Any] = {"lr": 0.05, "eps": 0.1}  # with which the size of a gradient matters
    run(make_adam(kind, theirs, **options), theirs, 0.3)
    run(make(kind, ours, **options), ours, 0.3)
    run(make(kind, other, **options), other, 1e9)
    assert_same(ours, theirs)
    with pytest.raises(AssertionError):
        assert_same(other, theirs)


@every_kind
def test_the_profiler_names_the_step(kind: str) -> None:
    params = start()
    optimizer = make(kind, params)
    train(optimizer, params, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(optimizer, params, 1)
    names = {event.key for event in profile.key_averages()}
    assert {f"Optimizer.step#{kind}.step", f"Optimizer.zero_grad#{kind}.zero_grad"} <= names
