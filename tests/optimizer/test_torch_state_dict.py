"""What torch.optim promises of state_dict and load_state_dict, in everyday use."""

import copy
import io
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.one_term import KINDS, assert_same, loss_of, make, make_adam, optimizer_class, start, step, train

every_kind = pytest.mark.parametrize("kind", KINDS)
OPTIONS: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}
NEW_KEYS = ("amsgrad", "maximize", "decoupled_weight_decay")
OPTIONAL = ("norm_init", "anchor", "norms", "term_weights", *NEW_KEYS)


def named(params: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"layer.{i}", p) for i, p in enumerate(params)]


def without(saved: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return a copy of a state dict whose groups lack ``keys``."""
    groups = [{key: value for key, value in group.items() if key not in keys} for group in saved["param_groups"]]
    return {**copy.deepcopy(saved), "param_groups": groups}


def clones(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


def assert_equal(saved: Any, other: Any) -> None:
    """Raise AssertionError unless two state dicts are equal to the bit."""
    assert saved["param_groups"] == other["param_groups"]
    torch.testing.assert_close(saved["state"], other["state"], rtol=0, atol=0, equal_nan=True)


def halfway(kind: str, theirs: list[nn.Parameter], **options: Any) -> tuple[Any, list[nn.Parameter]]:
    """Return an optimizer after 5 steps and its parameters. Train ``theirs`` with Adam for 10."""
    train(make_adam(kind, theirs, **options), theirs, 10)
    ours = start()
    optimizer = make(kind, ours, **options)
    train(optimizer, ours, 5)
    return optimizer, ours


def go_on(kind: str, saved: dict[str, Any], ours: list[nn.Parameter], **options: Any) -> list[nn.Parameter]:
    """Load ``saved`` beside copies of the parameters, make 5 more steps, and return the copies."""
    again = clones(ours)
    optimizer = make(kind, again, **options)
    optimizer.load_state_dict(saved)
    train(optimizer, again, 5)
    return again


def number_steps(saved: dict[str, Any]) -> dict[str, Any]:
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    return saved


OLDER: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "without newer keys": lambda saved: without(saved, *OPTIONAL),
    "with steps that are numbers": number_steps,
    "with other entries": lambda saved: {"epoch": 3, **saved},
}


@every_kind
@pytest.mark.parametrize("older", OLDER)
def test_an_older_state_goes_on_as_adam(kind: str, older: str) -> None:
    theirs = start()
    optimizer, ours = halfway(kind, theirs, **OPTIONS)
    saved = OLDER[older](copy.deepcopy(optimizer.state_dict()))
    assert_same(go_on(kind, saved, ours, **OPTIONS), theirs)
    for state in saved["state"].values():
        state["step"] = 0
    with pytest.raises(AssertionError):
        assert_same(go_on(kind, saved, ours, **OPTIONS), theirs)


@every_kind
@pytest.mark.parametrize("names", [(False, False), (False, True), (True, False), (True, True)])
def test_states_with_and_without_names(kind: str, names: tuple[bool, bool]) -> None:
    """Names of named_parameters() are kept, if either optimizer has them, and equal states are equal to the bit."""
    ours = start()
    again = clones(ours)
    first = make(kind, named(ours) if names[0] else ours, lr=0.05)
    train(first, ours, 3)
    with torch.no_grad():
        for p, q in zip(ours, again, strict=True):
            q.copy_(p)
    second = make(kind, named(again) if names[1] else again, lr=0.05)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimizer, of in ((first, ours), (second, again)):
        train(optimizer, of, 3)
    assert_equal(without(first.state_dict(), "param_names"), without(second.state_dict(), "param_names"))
    (group,) = second.state_dict()["param_groups"]
    assert group.get("param_names") == (["layer.0", "layer.1"] if any(names) else None)
    train(second, again, 1)
    with pytest.raises(AssertionError):
        assert_equal(without(first.state_dict(), "param_names"), without(second.state_dict(), "param_names"))


@every_kind
def test_a_saved_file_holds_the_state_to_the_bit(kind: str) -> None:
    params = start()
    optimizer = make(kind, named(params), lr=torch.tensor(0.05), weight_decay=0.1, amsgrad=True)
    train(optimizer, params, 3)
    optimizer.param_groups[0] |= {"initial_lr": 0.1, "stage": "warm-up"}
    saved = optimizer.state_dict()
    file = io.BytesIO()
    torch.save(saved, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert_equal(loaded, saved)
    again = make(kind, params)
    again.load_state_dict(loaded)
    assert_equal(again.state_dict(), saved)


@every_kind
@pytest.mark.parametrize("note", [1, {"key": "value"}, torch.ones(2)], ids=["number", "dict", "tensor"])
def test_entries_beside_the_parameters_are_kept(kind: str, note: Any) -> None:
    """Hooks and users may put anything in ``optimizer.state``: steps leave it alone, checkpoints hold it."""
    theirs, params = start(), start()
    train(make_adam(kind, theirs), theirs, 4)
    first = make(kind, params)
    first.state["note"] = note  # type: ignore[index]
    train(first, params, 2)
    second = make(kind, params)
    second.load_state_dict(first.state_dict())
    train(second, params, 2)
    assert_same(params, theirs)
    assert second.state["note"] is note  # type: ignore[index]
    assert list(second.state) == ["note", *params]


@every_kind
def test_a_group_listed_twice_is_saved_alike(kind: str) -> None:
    params = start()
    optimizer = make(kind, params)
    train(optimizer, params, 2)
    (group,) = optimizer.state_dict()["param_groups"]
    optimizer.param_groups.extend(optimizer.param_groups)
    first, second = optimizer.state_dict()["param_groups"]
    assert first == second == group


@every_kind
def test_a_learning_rate_in_a_tensor_stays_one(kind: str) -> None:
    """What is loaded has its own, in the saved dtype, and a scheduler changes it in place."""
    params = start()
    first = make(kind, params, lr=torch.tensor(0.05, dtype=torch.float64))
    train(first, params, 2)
    second = make(kind, params, lr=0.1)
    second.load_state_dict(first.state_dict())
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (first, second)]
    assert isinstance(rates[1], Tensor)
    assert rates[1].dtype == torch.float64
    scheduler = torch.optim.lr_scheduler.ExponentialLR(second, 0.5)
    train(second, params, 1, lambda _: scheduler.step())
    assert second.param_groups[0]["lr"] is rates[1]
    assert [rate.item() for rate in rates] == [0.05, 0.025]


@every_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, None], ids=["deepcopy", "load"])
def test_copies_share_nothing(kind: str, copied: Callable[[Any], Any] | None) -> None:
    """Training one leaves the state of the other as it was."""
    params = start()
    first = make(kind, params, lr=torch.tensor(0.05))
    train(first, params, 3)
    if copied is None:
        second, of = make(kind, params), params
        second.load_state_dict(first.state_dict())
    else:
        second = copied(first)
        of = second.param_groups[0]["params"]
    before = copy.deepcopy(first.state_dict())
    second.param_groups[0]["lr"].mul_(2)
    train(second, of, 2)
    assert_equal(first.state_dict(), before)
    with pytest.raises(AssertionError):
        assert_equal(second.state_dict(), before)


@every_kind
def test_the_state_has_torchs_form(kind: str) -> None:
    """A defaultdict of parameters, also once loaded or copied, empty before the first step."""
    params = start()
    optimizer = make(kind, params)
    assert not optimizer.state
    train(optimizer, params, 1)
    again = make(kind, params)
    again.load_state_dict(optimizer.state_dict())
    for same in (optimizer, again, copy.deepcopy(optimizer)):
        assert type(same.state) is defaultdict
        assert same.state.default_factory is dict
        assert list(same.state) == same.param_groups[0]["params"]
        assert all(state["step"].item() == 1 for state in same.state.values())


@every_kind
def test_defaults_make_another_optimizer(kind: str) -> None:
    options: dict[str, Any] = {"lr": 0.3, "weight_decay": 0.1, "eps": 1e-6, "maximize": True, "amsgrad": True}
    optimizer = make(kind, start(), **options)
    assert options.items() <= optimizer.defaults.items()
    again = optimizer_class(kind)(start(), **optimizer.defaults)
    assert again.defaults == optimizer.defaults
    assert without(again.state_dict()) == without(optimizer.state_dict())


@every_kind
def test_copies_have_all_public_attributes(kind: str) -> None:
    params = start()
    optimizer = make(kind, params)
    train(optimizer, params, 1)
    optimizer.register_step_post_hook(lambda *_: pytest.fail("a copy has the hooks"))
    again = copy.deepcopy(optimizer)
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    assert public <= vars(again).keys()
    assert {"defaults", "state", "param_groups"} < public
    step(again)  # hooks stay with the original, as in torch.optim
    with pytest.raises(pytest.fail.Exception):
        step(optimizer)
    assert loss_of(params).isfinite()
