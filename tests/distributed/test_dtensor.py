"""DTensor parameters: four processes, each with its shards, make the steps of one process that has everything."""

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oracles import numpy_oracle
from oracles.tolerances import TooFar, check_params, check_values, same
from tests.distributed.dtensor_checks import CHECKS
from tests.distributed.dtensor_worker import OPTIONS, PROCESSES, STEPS, WEIGHTS, Network, batch
from tests.support.distributed_steps import Steps, check_steps, term_gradients
from tests.support.processes import run_all

pytestmark = pytest.mark.skipif(torch.__version__ < "2.11", reason="FSDP2 of this torch does not run on the CPU")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of dtensor_worker.py in each process."""
    folder = tmp_path_factory.mktemp("dtensor")
    run_all(PROCESSES, folder, "tests.distributed.dtensor_worker", str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def check(steps: Steps, name: str = "plain") -> list[numpy_oracle.Parameter]:
    """See ``check_steps``."""
    network = Network()
    return check_steps(steps, network, lambda t: network(batch(t)), **OPTIONS[name])


def all_equal(values: list[Steps]) -> bool:
    """Return whether all processes have the same parameters."""
    return all(same(chain(*steps), chain(*values[0])) for steps in values)


WAYS = [f"FSDP2, {name}, {backend}" for name in OPTIONS for backend in ("cpu", "reference")]
WAYS += ["FSDP2 replicated", "FSDP2, gathered once", "FSDP2, accumulated"]
WAYS += ["FSDP2 beside plain parameters", "tensor parallel", "tensor and data parallel"]


@pytest.mark.parametrize("way", WAYS)
def test_many_processes_make_the_steps_of_one(way: str, found: list[dict[str, Any]]) -> None:
    steps = [of_process[way] for of_process in found]
    assert len(steps[0]) == STEPS
    check(steps[0], next((name for name in OPTIONS if name in way.split(", ")), "plain"))
    assert all_equal(steps)


def test_with_local_norms_they_do_not(found: list[dict[str, Any]]) -> None:
    with pytest.raises(TooFar):
        check(found[0]["local norms"])


def test_combined_gradients_are_left_sharded(found: list[dict[str, Any]]) -> None:
    states = check(found[0]["FSDP2, plain, cpu"][:2])
    for of_process in found:
        for grad, state in zip(of_process["combined gradients"], states, strict=True):
            check_values(grad, state.combined, 1e-12, 1e-15)


def check_rule(steps: Steps, gram: Tensor, losses: Tensor) -> None:
    """Compare with torch.optim.Adam on the weighted sum, and with dot products and losses of the whole batch.

    Raises:
        TooFar: they differ.
    """
    network = Network()
    adam = torch.optim.Adam(network.parameters(), lr=0.1)
    for t, found in enumerate(steps):
        before = [p.detach().clone() for p in network.parameters()]
        values = torch.stack(list(network(batch(t)).values()))
        grads = term_gradients(network(batch(t)), network.parameters())
        shared = [torch.cat([g.flatten() for g in row[:2] if g is not None]) for row in grads]
        adam.zero_grad()
        (values * torch.tensor(list(WEIGHTS.values()))).sum().backward()
        adam.step()
        for p, p_before, p_found in zip(network.parameters(), before, found, strict=True):
            check_params(p_found, p.detach().numpy(), p_before)
    products = torch.stack(shared) @ torch.stack(shared).t()
    check_values(gram, products.numpy(), 1e-12, 1e-15)
    check_values(losses, values.detach().numpy(), 1e-12)


@pytest.mark.parametrize("way", ["cpu", "reference", "replicated", "tensor and data parallel"])
def test_a_rule_sees_the_whole_and_its_weights_are_agreed_on(way: str, found: list[dict[str, Any]]) -> None:
    for of_process in found:
        check_rule(*of_process[f"rule, {way}"])
    assert all_equal([of_process[f"rule, {way}"][0] for of_process in found])


def test_local_dot_products_are_rejected(found: list[dict[str, Any]]) -> None:
    with pytest.raises(TooFar):
        check_rule(*found[0]["rule, local products"])


def test_a_gradient_that_is_not_finite_in_one_shard_is_refused_in_all(found: list[dict[str, Any]]) -> None:
    for of_process in found:
        (first, second, third, _), params = of_process["not finite"]
        assert (first, third) == ("none", "none")
        assert second.startswith("the gradient of term 'fit' for parameter 0 is not finite")
        assert not same(params[0], params[2])
        assert same(params[0], params[1])


def test_a_gradient_that_is_not_finite_in_one_shard_skips_the_scaled_step_in_all(found: list[dict[str, Any]]) -> None:
    for of_process in found:
        (*errors, scale), params = of_process["scaled"]
        assert errors == ["none"] * 3
        assert scale == "512.0"
        assert not same(params[0], params[2])
        assert same(params[0], params[1])


@pytest.mark.parametrize("name", ["plain", "balanced"])
def test_checkpoints_go_on_over_as_many_processes_and_over_others(name: str, found: list[dict[str, Any]]) -> None:
    for of_process in found:
        resumed, steps = of_process[f"resumed, {name}"], of_process[f"FSDP2, {name}, cpu"]
        assert same(chain(*resumed["resumed"]), chain(*resumed["without a break"]))
        check([*steps[:2], *resumed["resumed over others"]], name)
        assert same(chain(*resumed["without a break"]), chain(*steps[2:]))
        assert same(chain(*resumed["resumed, fresh"]), chain(*steps[2:]))


ERRORS = {
    "process_group": "process_group has ranks [0, 1, 2, 3], but params[0] is (Shard(dim=0),) on DeviceMesh",
    "a new optimizer": "none",
    "not reduced": "term 'fit' has left no gradient for any sharded parameter, and what FSDP2 has not reduced would",
    "of no term": "parameter 0 has a gradient in .grad that belongs to no term. Call optimizer.backward({...})",
    "pickled": "an optimizer that trains with other processes cannot be pickled; save its state_dict()",
    "inputs": "no gradient for the sharded parameters among inputs: FSDP2 cannot be told its inputs; leave inputs out",
    "state": "the saved exp_avg of parameter 0 is a plain tensor, the parameter is (Shard(dim=0),) on DeviceMesh",
    "another mesh": "the gradient of term 'other' for parameter 0 is (Replicate(), Replicate()) on DeviceMesh",
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, found: list[dict[str, Any]]) -> None:
    for of_process in found:
        assert ERRORS[name] in of_process["errors"][name]


@pytest.mark.parametrize("check_name", CHECKS)
def test_check(check_name: str, found: list[dict[str, Any]]) -> None:
    assert [of_process["checks"][check_name] for of_process in found] == ["holds"] * PROCESSES


def test_other_terms_in_another_process_are_an_error(found: list[dict[str, Any]]) -> None:
    for rank, of_process in enumerate(found):
        other = 1 if rank == 0 else 0
        expected = f"rank {other} of the group has {'abcd'[other]!r}, this rank "
        assert expected in of_process["errors"]["terms"]
        seen = ["a rank of another group has another term", *["rank 1 of the group has"] * 2, "rank 0 of the group has"]
        assert f"parameters that it reaches: {seen[rank]}" in of_process["errors"]["terms, two by two"]
        assert of_process["errors"]["nothing has changed"] == "none{}"


def test_code_of_the_page(found: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    initial = list(nn.Linear(3, 3).state_dict().values())
    for of_process in found:
        assert same(of_process["page"], found[0]["page"])
        assert not same(of_process["page"], initial)
