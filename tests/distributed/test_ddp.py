"""Gradients averaged over processes: two, each with half of every batch, make the steps of one that has all of it."""

from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.distributed import communicator
from mtadam_fused.rules import PCGrad
from oracles.tolerances import TooFar, check_values, same
from tests.distributed.ddp_worker import BALANCED, OPTIONS, STEPS, batch, gradients, losses, network
from tests.support.distributed_steps import Steps, check_steps, term_gradients
from tests.support.processes import run_all


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of ddp_worker.py in each process."""
    folder = tmp_path_factory.mktemp("ddp")
    run_all(2, folder, "tests.distributed.ddp_worker", str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def check(steps: Steps, options: dict[str, Any] = OPTIONS) -> None:
    """See ``check_steps``."""
    model = network()
    check_steps(steps, model, lambda t: losses(model, model[0].weight, batch(t)), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["no_sync", "synchronized, in parts", "balanced"])
def test_two_processes_make_the_steps_of_one(way: str, found: list[dict[str, Any]]) -> None:
    first, second = (of_process[way] for of_process in found)
    assert len(first) == STEPS
    check(first, BALANCED if way == "balanced" else OPTIONS)
    assert same(chain(*first), chain(*second))


def test_code_of_the_page(found: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    initial = list(nn.Linear(3, 3).state_dict().values())
    assert same(found[0]["page"], found[1]["page"])
    assert not same(found[0]["page"], initial)


def test_averages_are_made_while_the_next_term_is_differentiated(found: list[dict[str, Any]]) -> None:
    for of_process in found:
        assert of_process["order"] == ["backward", "async average"] * 3 + ["step"]


@pytest.mark.parametrize("way", ["not averaged", "a group for each"])
def test_without_a_common_group_they_do_not(way: str, found: list[dict[str, Any]]) -> None:
    first, second = (of_process[way] for of_process in found)
    with pytest.raises(TooFar):
        check(first)
    assert not same(chain(*first), chain(*second))
    assert same(chain(*first), chain(*found[0]["not averaged"]))


def test_processes_agree_on_the_weights_of_a_rule(found: list[dict[str, Any]]) -> None:
    assert same(chain(*found[0]["rule"]), chain(*found[1]["rule"]))
    first, second = (of_process["rule, not agreed"] for of_process in found)
    assert not same(chain(*first), chain(*second))


def test_a_rule_sees_dot_products_and_losses_of_the_whole_batch(found: list[dict[str, Any]]) -> None:
    model = network()
    for p, before in zip(model.parameters(), found[0]["rule"][-2], strict=True):
        p.data = before
    of_terms = losses(model, model[0].weight, batch(STEPS - 1))  # type: ignore[arg-type]
    grads = term_gradients(of_terms, model.parameters())
    shared = torch.stack([of_term[0].flatten() for of_term in grads if of_term[0] is not None])
    values = torch.stack(list(of_terms.values())).detach()
    for of_process in found:
        gram, seen = of_process["rule: seen"]
        check_values(gram, (shared @ shared.T).numpy(), 1e-12)
        check_values(seen, values.numpy(), 1e-12)


def test_other_terms_in_the_other_process_are_an_error(found: list[dict[str, Any]]) -> None:
    first, second = found
    assert "rank 1 of the group has 'b', this rank 'a'" in first["other terms"]
    assert "rank 0 of the group has 'a', this rank 'b'" in second["other terms"]
    for of_process in found:
        assert "or on the parameters that it reaches" in of_process["other parameters"]
        assert of_process["terms"] == ("a",)
        assert of_process["after it"] == "none"  # all waiting gradients are dropped


def test_what_is_not_finite_in_one_process_is_refused_in_all(found: list[dict[str, Any]]) -> None:
    (errors, params), (other_errors, other_params) = (of_process["not finite"] for of_process in found)
    assert errors == other_errors
    assert [error.split(";")[0] for error in errors] == [
        "none",
        "the gradient of term 'a' for parameter 0 is not finite",
        "none",
    ]
    assert same(params, other_params)
    assert all(p.isfinite().all() for p in params)


def test_a_loss_that_overflows_in_one_process_skips_the_step_in_all(found: list[dict[str, Any]]) -> None:
    initial = list(network().state_dict().values())
    for of_process in found:
        scale, params = of_process["scaled"]
        assert scale == 512
        assert same(params, initial)


def test_a_loss_that_is_infinite_with_finite_gradients_skips_nothing(found: list[dict[str, Any]]) -> None:
    initial = list(network().state_dict().values())
    for of_process in found:
        scale, params = of_process["scaled, infinite loss"]
        assert scale == 1024
        assert not same(params, initial)
        assert same(params, found[0]["scaled, infinite loss"][1])


@pytest.mark.parametrize("rank", range(2))
def test_an_optimizer_that_averages_nothing_warns_once(rank: int, found: list[dict[str, Any]]) -> None:
    messages = found[rank]["warnings"]
    for name in ("no group", "pass per term"):
        (message,) = messages[name]
        assert message.startswith("this is one of 2 processes, and the optimizer averages no gradients")
        assert "process_group=torch.distributed.group.WORLD" in message
    (message,) = messages["one pass, weights of the batch"]
    assert message.startswith("this is one of 2 processes, and the rule looks at this one's batch alone")
    assert not messages["a group"]
    assert not messages["one pass"]  # DistributedDataParallel averages that


def test_no_step_is_made_with_averages_that_failed(found: list[dict[str, Any]]) -> None:
    for of_process in found:
        assert of_process["failures"] == [("the network is gone", True)] * 2


def test_copies_average_too_and_pickles_are_refused(found: list[dict[str, Any]]) -> None:
    for of_process in found:
        assert of_process["copied"]
        assert "that trains with other processes cannot be pickled; save its state_dict()" in of_process["pickled"]


def test_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communicator, "BUCKET_BYTES", 100)
    sizes = [(10, torch.float32), (15, torch.float32), (23, torch.float32), (1, torch.float64), (1, torch.float32)]
    grads = [torch.zeros(n, dtype=dtype) for n, dtype in sizes]
    assert list(communicator.make_buckets([*grads, None, torch.zeros(100), torch.zeros(1)])) == [
        [0, 1],
        [2, 4, 6],
        [3],
        [7],
    ]
    assert list(communicator.make_buckets([None])) == []


def test_types_and_layouts(found: list[dict[str, Any]]) -> None:
    both = [gradients(rank) for rank in range(2)]
    for of_process in found:
        for way in ("averages", "averages, in many parts"):
            for mean, a, b in zip(of_process[way], *both, strict=True):
                if a is None or b is None:
                    assert mean is None
                    continue
                assert mean.stride() == a.stride()
                assert mean.data_ptr() % 16 == 0 or not mean.numel()
                assert torch.equal(mean, a / 2 + b / 2)
                assert torch.equal(mean, a) == torch.equal(a, b)


@pytest.mark.parametrize("group", ["nccl", True, torch.distributed.GroupMember.NON_GROUP_MEMBER])
def test_what_is_no_group_is_refused(group: Any, found: list[dict[str, Any]]) -> None:
    p = nn.Parameter(torch.ones(2))
    for make in (lambda: MTAdam([p], process_group=group), lambda: CombinedAdam([p], PCGrad(), process_group=group)):
        with pytest.raises(TypeError, match=r"process_group is .* that this process is a member of"):
            make()
    for of_process in found:
        assert "that this process is a member of" in of_process["not a member"]
