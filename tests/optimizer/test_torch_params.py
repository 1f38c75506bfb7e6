"""Parameters, groups, gradients and closures of every kind are taken as torch.optim.Adam takes them."""

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from oracles.tolerances import TooFar, check_params
from tests.support.one_term import KINDS, assert_same, loss_of, make, make_adam, start, step, train

every_kind = pytest.mark.parametrize("kind", KINDS)
plain_kinds = pytest.mark.parametrize("kind", ["MTAdam", "CombinedAdam"])


@every_kind
def test_groups_are_as_adams(kind: str) -> None:
    """Each has its own learning rate, weight decay, betas, eps, AMSGrad and direction, and one takes the defaults."""

    def groups(of: list[nn.Parameter], plain: bool) -> list[dict[str, Any]]:
        betas = (0.5, 0.9, 0.99) if kind == "MTAdam" and not plain else (0.5, 0.9)
        betas = (*betas[:2], 0.99) if kind != "CombinedAdam" and not plain else betas
        own = {"lr": 0.02, "weight_decay": 0.3, "betas": betas, "eps": 0.01, "amsgrad": True, "maximize": True}
        return [{"params": of[0]}, {"params": iter(of[1:]), **own}]

    theirs, ours, other = start(), start(), start()
    train(make_adam(kind, groups(theirs, True), lr=0.05), theirs, 8)
    train(make(kind, groups(ours, False), lr=0.05), ours, 8)
    train(make(kind, other, lr=0.05), other, 8)
    assert_same(ours, theirs)
    for p, q in zip(other[1:], theirs[1:], strict=True):
        with pytest.raises(AssertionError):
            assert_same([p], [q])


CHANGES: dict[str, Any] = {"lr": 0.3, "betas": (0.5, 0.9), "eps": 0.5, "weight_decay": 2.0, "maximize": True}


@every_kind
@pytest.mark.parametrize("name", CHANGES)
def test_a_value_changed_by_hand_is_taken_at_the_next_step(kind: str, name: str) -> None:
    def run(maker: Callable[..., Any], change: bool = True) -> list[nn.Parameter]:
        params = start()
        optimizer = maker(kind, params, lr=0.05)
        (group,) = optimizer.param_groups
        for value in (CHANGES[name], group[name]):
            train(optimizer, params, 3)
            more = group["betas"][2:] if name == "betas" else ()
            group[name] = ((*value[:2], *more) if name == "betas" else value) if change else group[name]
        train(optimizer, params, 3)
        return params

    theirs = run(make_adam)
    assert_same(run(make), theirs)
    with pytest.raises(AssertionError):
        assert_same(run(make, change=False), theirs)


@every_kind
def test_a_group_added_later_is_as_adams(kind: str) -> None:
    def run(maker: Callable[..., Any]) -> list[nn.Parameter]:
        params = start()
        optimizer = maker(kind, params[:1], lr=0.05)
        train(optimizer, params, 3)
        params[1].grad = None
        optimizer.add_param_group({"params": params[1], "lr": 0.1})
        train(optimizer, params, 3)
        return params

    assert_same(run(make), run(make_adam))
    with pytest.raises(AssertionError):
        assert_same(run(make)[1:], start()[1:])


@every_kind
def test_gradients_that_come_and_go_are_as_adams(kind: str) -> None:
    """A layer is frozen for two steps, one step has no gradients, and two parameters never have any."""

    def run(maker: Callable[..., Any], freeze: bool = True) -> list[nn.Parameter]:
        params = [*start(), nn.Parameter(torch.empty(0, 3, dtype=torch.float64))]
        constant = torch.ones(2, dtype=torch.float64)
        optimizer = maker(kind, [*params, constant], lr=0.05)
        for t in range(7):
            optimizer.zero_grad()
            params[0].requires_grad_(not (freeze and t in (3, 4)))
            if t != 2:
                (loss_of(params[:2]) + params[2].sum()).backward()
            step(optimizer)
        assert constant.tolist() == [1.0, 1.0]
        assert optimizer.state.keys() == set(params)
        return params

    theirs = run(make_adam)
    assert_same(run(make), theirs)
    with pytest.raises(AssertionError):
        assert_same(run(make, freeze=False), theirs)


@every_kind
def test_zero_gradients_change_no_parameter(kind: str) -> None:
    params = start()
    optimizer = make(kind, params)
    for p in params:
        p.grad = torch.zeros_like(p)
    step(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(params, start(), strict=True))
    assert [optimizer.state[p]["step"].item() for p in params] == [1, 1]
    train(optimizer, params, 1)
    assert not any(torch.equal(p, q) for p, q in zip(params, start(), strict=True))


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@plain_kinds
@pytest.mark.parametrize("factor", [1.0, 1.02])
def test_all_dtypes_in_one_optimizer(kind: str, factor: float, backend: str) -> None:
    """Each parameter makes the float64 step of Adam, rounded once. With a learning rate 2 % off none does."""
    generator = torch.Generator().manual_seed(1)
    ours = [nn.Parameter(torch.randn(40, 5, generator=generator).to(dtype)) for dtype in DTYPES]
    theirs = [nn.Parameter(p.detach().clone().double()) for p in ours]
    adam = torch.optim.Adam(theirs, lr=0.1)
    optimizer = make(kind, [{"params": ours[:2]}, {"params": ours[2:]}], lr=0.1 * factor, backend=backend)
    seen = set()
    for _ in range(4):
        before = [p.detach().clone() for p in ours]
        with torch.no_grad():
            for p, q in zip(ours, theirs, strict=True):
                q.copy_(p)
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
                q.grad = p.grad.double()
        step(optimizer)
        step(adam)
        seen |= {p.dtype for p, q, b in zip(ours, theirs, before, strict=True) if is_far(p, q, b)}
    assert seen == (set() if factor == 1.0 else set(DTYPES))


def is_far(ours: Tensor, theirs: Tensor, before: Tensor) -> bool:
    """Return whether a step differs from the same step in float64 by more than rounding."""
    try:
        check_params(ours, theirs.detach().numpy(), before)
    except TooFar:
        return True
    return False


@every_kind
def test_the_default_dtype_does_not_matter(kind: str) -> None:
    def run(dtype: torch.dtype) -> list[nn.Parameter]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            params = start()
            train(make(kind, params, lr=0.05), params, 3)
            return params
        finally:
            torch.set_default_dtype(before)

    theirs = start()
    train(make_adam(kind, theirs, lr=0.05), theirs, 3)
    for dtype in DTYPES:
        assert_same(run(dtype), theirs)


NOT_LEAF = nn.Parameter(torch.ones(2)) * 2
ONE, TWO = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
BAD_PARAMS: dict[str, Any] = {
    "a tensor": ONE,
    "none": [],
    "a number": [1.0],
    "a set": [{"params": {ONE}}],
    "not a leaf": [NOT_LEAF],
    "in two groups": [{"params": ONE}, {"params": ONE}],
    "names for some": [("one", ONE), TWO],
    "names for some groups": [{"params": [ONE]}, {"params": [("two", TWO)]}],
    "the same name twice": [("one", ONE), ("one", TWO)],
    "a string": ["one"],
    "no iterable": 3,
}


def error_of(make_it: Callable[[], Any]) -> type[Exception] | None:
    """Return the type of the error that ``make_it`` raises."""
    try:
        make_it()
    except Exception as error:
        return type(error)
    return None


@every_kind
@pytest.mark.parametrize("bad", BAD_PARAMS)
def test_bad_parameters_are_the_same_errors(kind: str, bad: str) -> None:
    expected = error_of(lambda: torch.optim.Adam(BAD_PARAMS[bad]))
    assert error_of(lambda: make(kind, BAD_PARAMS[bad])) is expected


BAD_GROUPS: dict[str, Any] = {
    "no dict": [TWO],
    "a set": {"params": {TWO}},
    "known": {"params": [ONE]},
    "not a leaf": {"params": [NOT_LEAF]},
    "a number": {"params": [1.0]},
    "named": {"params": [("two", TWO)]},
    "empty": {"params": []},
    "with keys of the user": {"params": [TWO], "name": "late"},
}


@every_kind
@pytest.mark.parametrize("bad", BAD_GROUPS)
def test_bad_groups_are_the_same_errors_and_add_nothing(kind: str, bad: str) -> None:
    optimizer = make(kind, [ONE])
    error = error_of(lambda: optimizer.add_param_group(copy.copy(BAD_GROUPS[bad])))
    assert error is error_of(lambda: torch.optim.Adam([ONE]).add_param_group(copy.copy(BAD_GROUPS[bad])))
    assert len(optimizer.param_groups) == (1 if error else 2)
    with optimizer.term("loss"):
        ONE.square().sum().backward()
    optimizer.step()
    assert optimizer.state[ONE]["step"] == 1


@every_kind
def test_torch_warns_of_a_parameter_listed_twice(kind: str) -> None:
    with pytest.warns(UserWarning, match="duplicate parameters"):
        make(kind, [ONE, ONE])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(kind, [ONE, TWO])


@every_kind
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_step_in_any_autograd_mode(kind: str, mode: Callable[[], Any]) -> None:
    """The mode is the caller's again afterwards, a closure runs with gradients, and the next step works outside it.

    In inference mode no closure can differentiate; and as in torch, the state must have been made before, outside it.
    """
    theirs, params = start(), start()
    train(make_adam(kind, theirs, lr=0.05), theirs, 5)
    optimizer = make(kind, params, lr=0.05)
    train(optimizer, params, 1)
    before = loss_of(params).detach()

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        with optimizer.term("loss"):
            loss = loss_of(params)
            loss.backward()
        return loss.detach()

    if mode is torch.inference_mode:
        closure()
    with mode():
        enabled = torch.is_grad_enabled()
        loss = optimizer.step(None if mode is torch.inference_mode else closure)
        assert torch.is_grad_enabled() == enabled
    assert loss is None or torch.equal(loss, before)
    train(optimizer, params, 3)
    assert_same(params, theirs)
    assert all(p.requires_grad and p.is_leaf for p in params)


@every_kind
def test_the_printed_form_shows_groups_and_terms(kind: str) -> None:
    optimizer = make(kind, [{"params": start()[:1], "lr": 0.25}, {"params": start()[1:]}], weight_decay=0.125)
    step(optimizer)
    shown = repr(optimizer)
    assert shown.startswith(f"{kind} (\nParameter Group 0\n")
    assert all(part in shown for part in ("lr: 0.25\n", "lr: 0.001\n", "weight_decay: 0.125\n", "'loss'"))


@every_kind
def test_an_optimizer_is_freed_with_its_last_reference(kind: str) -> None:
    """No cycle keeps it, its scheduler or its state until the garbage collector comes."""

    def made(params: list[nn.Parameter]) -> weakref.ref:
        optimizer = make(kind, params)
        scheduler = LambdaLR(optimizer, lambda t: 1.0)
        train(optimizer, params, 2, lambda _: scheduler.step())
        assert alive(weakref.ref(optimizer))
        return weakref.ref(optimizer.state[params[0]]["exp_avg"])

    def alive(reference: weakref.ref) -> bool:
        return reference() is not None

    gc.collect()
    gc.disable()
    try:
        assert not alive(made(start()))
    finally:
        gc.enable()
