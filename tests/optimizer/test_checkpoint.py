"""Saving and loading: in the middle of a run, across backends and types, and from the published optimizer."""

import copy
import enum
import io
import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import MTAdam
from oracles.published_loop import PublishedMTAdam
from oracles.tolerances import check_values
from tests.support.cases import CPU_BACKENDS

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def params(dtype: torch.dtype) -> list[nn.Parameter]:
    torch.manual_seed(0)
    channels_last = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    return [nn.Parameter(x.to(dtype)) for x in (torch.randn(5, 7), torch.randn(300), channels_last)]


def train(optimizer: MTAdam, of: list[nn.Parameter], steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for k, name in enumerate(("a", "b", "c")):
            if t % 3 == k:
                continue  # every term is absent at some step
            with optimizer.term(name):
                for i, p in enumerate(of):
                    if (i + k) % 3:  # and reaches not every parameter
                        p.grad = (10.0**k * torch.randn(p.shape, generator=generator)).to(p.dtype)
        optimizer.step()


def through_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location="cpu")


WAYS: dict[str, Callable[[dict], dict]] = {"in memory": lambda state: state, "through a file": through_file}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loaded_run_goes_on_bit_for_bit(dtype: torch.dtype, way: str, backend: str) -> None:
    options: dict[str, Any] = {
        "lr": 0.1,
        "amsgrad": True,
        "weight_decay": 0.1,
        "term_weights": {"a": 1.0, "b": 2.0, "c": 0.5},
    }
    whole = params(dtype)
    first = MTAdam(whole, **options, backend=backend)
    train(first, whole, range(5))
    again = [nn.Parameter(p.detach().clone()) for p in whole]
    second = MTAdam(again, backend=backend)
    second.load_state_dict(WAYS[way](first.state_dict()))
    assert second.terms == first.terms
    for p in again:
        kinds = {v.dtype for name, v in second.state[p].items() if name != "step"}
        assert kinds == {torch.float64 if dtype == torch.float64 else torch.float32}
    for name, norms in first.running_norms().items():  # before a step too
        assert torch.equal(norms.nan_to_num(-1), second.running_norms()[name].nan_to_num(-1))
    for optimizer, of in ((first, whole), (second, again)):
        train(optimizer, of, range(5, 10))
    assert all(torch.equal(p, q) for p, q in zip(whole, again, strict=True))
    for name, norms in first.running_norms().items():
        assert torch.equal(norms.nan_to_num(-1), second.running_norms()[name].nan_to_num(-1))


def test_a_run_without_its_state_is_seen_to_differ(backend: str) -> None:
    whole = params(torch.float64)
    first = MTAdam(whole, backend=backend)
    train(first, whole, range(5))
    again = [nn.Parameter(p.detach().clone()) for p in whole]
    for optimizer, of in ((first, whole), (MTAdam(again, backend=backend), again)):
        train(optimizer, of, range(5, 6))
    assert not any(torch.equal(p, q) for p, q in zip(whole, again, strict=True))


@pytest.mark.parametrize("other", CPU_BACKENDS)
def test_backends_read_each_others_state(other: str, backend: str) -> None:
    whole = params(torch.float64)
    first = MTAdam(whole, backend=backend)
    train(first, whole, range(4))
    assert "backend" not in str(first.state_dict()["param_groups"])
    again = [nn.Parameter(p.detach().clone()) for p in whole]
    second = MTAdam(again, backend=other)
    second.load_state_dict(first.state_dict())
    for optimizer, of in ((first, whole), (second, again)):
        train(optimizer, of, range(4, 8))
    for p, q in zip(whole, again, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_loaded_state_is_a_copy(backend: str) -> None:
    whole = params(torch.float32)
    first = MTAdam(whole, backend=backend)
    train(first, whole, range(3))
    saved = first.state_dict()
    before = copy.deepcopy(saved["state"])
    again = [nn.Parameter(p.detach().clone()) for p in whole]
    second = MTAdam(again, backend=backend)
    second.load_state_dict(saved)
    train(second, again, range(3, 5))
    torch.testing.assert_close(saved["state"], before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_an_optimizer_go_on(copied: Callable, backend: str) -> None:
    whole = params(torch.float32)
    first = MTAdam(whole, backend=backend)
    train(first, whole, range(4))
    first.check_finite = first.keep_combined_grad = True
    second = copied(first)
    assert second.check_finite
    assert second.keep_combined_grad
    again = second.param_groups[0]["params"]
    for optimizer, of in ((first, whole), (second, again)):
        train(optimizer, of, range(4, 7))
    assert all(torch.equal(p, q) for p, q in zip(whole, again, strict=True))
    assert repr(second) == repr(first)


def grads_of(of: list[nn.Parameter], t: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(t)
    return [[torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in of] for _ in range(2)]


def test_running_norms_under_their_old_name_are_loaded(backend: str) -> None:
    """The state of a version that called them "norms" goes on as it did there."""
    saved = torch.load(Path(__file__).parents[1] / "golden" / "state_with_norms.pt")
    known = [nn.Parameter(value) for value in saved["params"]]
    optimizer = MTAdam(known, backend=backend)
    optimizer.load_state_dict(saved["optimizer"])
    assert "norms" not in optimizer.state[known[0]]
    for name, grads in zip("abc", saved["grads"], strict=True):
        with optimizer.term(name):
            for p, grad in zip(known, grads, strict=True):
                p.grad = grad
    optimizer.step()
    for p, after in zip(known, saved["params_after"], strict=True):
        check_values(p, after.numpy(), 1e-13)
    for term, norms in optimizer.running_norms().items():
        check_values(norms, saved["norms_after"][str(term)].numpy(), 1e-13)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_published_optimizers_state(amsgrad: bool, backend: str) -> None:
    """It has all but the running norms: with those given too, the runs go on alike; without, the norms start anew."""
    theirs = params(torch.float64)
    published = PublishedMTAdam([{"params": theirs}], terms=2, amsgrad=amsgrad)
    for t in range(4):
        published.step(grads_of(theirs, t))
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * amsgrad
    saved = {
        i: {"step": s["step"]} | {f"{name}{k}": s[f"{name}{k}"] for name in names for k in range(2)}
        for i, s in enumerate(published.state[p] for p in theirs)
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999, 0.9), "eps": 1e-8, "weight_decay": 0, "amsgrad": amsgrad}
    optimizer = MTAdam(ours, backend=backend)
    optimizer.load_state_dict({"state": saved, "param_groups": [{**group, "params": list(range(len(ours)))}]})
    assert optimizer.terms == (0, 1)
    assert all(norms.isnan().all() for norms in optimizer.running_norms().values())
    for p, q in zip(theirs, ours, strict=True):
        optimizer.state[q]["norm_avg"].copy_(torch.stack(published.state[p]["norms"]))
    for t in range(4, 7):
        grads = grads_of(theirs, t)
        published.step(grads)
        for k, of_term in enumerate(grads):
            with optimizer.term(k):
                for p, g in zip(ours, of_term, strict=True):
                    p.grad = g
        optimizer.step()
    for p, q in zip(theirs, ours, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


class Task(str, enum.Enum):
    A = "a"
    B = "b"


def test_names_and_weights_of_other_types_become_plain(backend: str) -> None:
    of = params(torch.float32)
    weights = defaultdict(float, {Task.A: np.float64(2.0), Task.B: 1})
    optimizer = MTAdam([{"params": of, "term_weights": weights}], anchor=Task.B, terms=tuple(Task), backend=backend)
    optimizer.backward({Task.A: of[0].sum(), Task.B: of[1].square().sum()})
    optimizer.step()
    with optimizer.term(Task.A):
        of[0].sum().backward()
    assert list(map(type, optimizer.terms)) == [str, str]
    assert optimizer.terms == ("a", "b")
    again = MTAdam(of, backend=backend)
    again.load_state_dict(through_file(optimizer.state_dict()))
    assert again.param_groups[0]["term_weights"] == {"a": 2.0, "b": 1.0}
    assert again.param_groups[0]["anchor"] == "b"


def test_state_of_another_model_changes_nothing(backend: str) -> None:
    whole = params(torch.float32)
    optimizer = MTAdam(whole, backend=backend)
    train(optimizer, whole, range(3))
    before = copy.deepcopy(optimizer.state_dict())
    good = copy.deepcopy(before)

    def refuse(state: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
        torch.testing.assert_close(optimizer.state_dict()["state"], before["state"], rtol=0, atol=0, equal_nan=True)

    bad = copy.deepcopy(good)
    bad["state"][1]["exp_avg"] = torch.zeros(5)
    refuse(bad, r"the saved exp_avg of parameter 1 is \(5,\), the parameter has shape \(300,\)")
    bad = copy.deepcopy(good)
    del bad["state"][1]["step"]
    refuse(bad, "the saved state of parameter 1 has no 'step'")
    faults = {
        "step": (None, torch.zeros(3)),
        "norm_avg": (None, torch.zeros(9), torch.zeros(())),
        "exp_avg_sq0": (None, torch.zeros(300, dtype=torch.complex64)),
    }
    for name, values in faults.items():
        for value in values:
            bad = copy.deepcopy(good)
            bad["state"][1][name] = value
            refuse(bad, f"the saved {name} of parameter 1")
    bad = copy.deepcopy(good)
    bad["param_groups"][0]["terms"] = bad["param_groups"][0]["terms"][:1]
    refuse(bad, "there are 1 terms|one for each of the 1 terms")
    bad = copy.deepcopy(good)
    del bad["state"][1]["exp_avg"]
    refuse(bad, "the saved state of parameter 1 has no 'exp_avg'")
    bad = copy.deepcopy(good)
    del bad["state"][1]["exp_avg_sq0"]
    refuse(bad, "the saved state of parameter 1 has a running norm of term 0 but no exp_avg_sq0")
    bad = copy.deepcopy(good)
    bad["param_groups"][0]["lr"] = -1.0
    refuse(bad, "lr is -1.0")
    bad = copy.deepcopy(good)
    bad["param_groups"][0]["params"] = [0, 1]
    refuse(bad, "doesn't match the size")
    bad = copy.deepcopy(good)
    bad["param_groups"][0]["betas"] = (0.9, 0.999)
    refuse(bad, r"betas is \(0.9, 0.999\); .* It may be that of another optimizer: CombinedAdam loads the state of")


def test_hooks_before_loading_see_and_repair_what_is_loaded(backend: str) -> None:
    whole = params(torch.float32)
    first = MTAdam(whole, backend=backend)
    train(first, whole, range(3))
    broken = first.state_dict()
    broken["state"] = {i: {"moment": dict(state)} for i, state in broken["state"].items()}
    kept = copy.deepcopy(broken)
    again = [nn.Parameter(p.detach().clone()) for p in whole]
    second = MTAdam(again, backend=backend)
    with pytest.raises(ValueError, match="the saved state of parameter 0 has no 'step'"):
        second.load_state_dict(broken)

    def look(optimizer: Any, state_dict: dict) -> None:
        assert optimizer is second
        assert isinstance(state_dict["state"][0]["moment"]["exp_avg"], Tensor)

    def repair(_: Any, state_dict: dict) -> dict:
        return {**state_dict, "state": {i: state["moment"] for i, state in state_dict["state"].items()}}

    second.register_load_state_dict_pre_hook(repair)
    second.register_load_state_dict_pre_hook(look, prepend=True)
    second.load_state_dict(broken)
    torch.testing.assert_close(broken["state"], kept["state"], rtol=0, atol=0, equal_nan=True)
    for optimizer, of in ((first, whole), (second, again)):
        train(optimizer, of, range(3, 5))
    assert all(torch.equal(p, q) for p, q in zip(whole, again, strict=True))


def test_what_users_keep_in_the_state_is_loaded(backend: str) -> None:
    p = nn.Parameter(torch.ones(3))
    first, second = (MTAdam([p], backend=backend) for _ in range(2))
    first.backward({"a": p.sum()})
    first.step()
    first.state[p] |= {"mask": torch.tensor([True, False, True]), "notes": ["kept"]}
    first.state["of the run"] = {"epochs": 3}  # type: ignore[index]
    second.load_state_dict(first.state_dict())
    assert second.state[p]["mask"].tolist() == [True, False, True]
    assert second.state[p]["notes"] == ["kept"]
    assert second.state[p]["notes"] is not first.state[p]["notes"]
    assert second.state["of the run"] == {"epochs": 3}  # type: ignore[index]


def test_gradients_that_a_step_has_left_stay_its_own_after_loading(backend: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p], backend=backend, keep_combined_grad=True)
    optimizer.backward({"a": p.sum()})
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert p.grad is not None
    optimizer.backward({"a": p.sum()})
    optimizer.step()
    p.grad += 1
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="belongs to no term"):
        optimizer.backward({"a": p.sum()})


@pytest.mark.parametrize("second_moments", ["per_term", "shared"])
def test_state_that_names_no_terms(second_moments: str, backend: str) -> None:
    whole = params(torch.float32)
    first = MTAdam(whole, backend=backend, second_moments=second_moments)
    train(first, whole, range(4))
    saved = first.state_dict()
    for group in saved["param_groups"]:
        del group["terms"]
    second = MTAdam(params(torch.float32), backend=backend, second_moments=second_moments)
    second.load_state_dict(saved)
    assert second.terms == (0, 1, 2)


def test_hooks_of_torch_are_called(backend: str) -> None:
    whole = params(torch.float32)
    optimizer = MTAdam(whole, backend=backend)
    calls: list[str] = []
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    optimizer.register_step_post_hook(lambda *_: calls.append("stepped"))
    train(optimizer, whole, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["stepped", "saved", "loading", "loaded"]
