"""Train a sharded network as one of four processes.

``python -m tests.distributed.dtensor_worker FOLDER RANK INIT_METHOD`` saves the results in the folder for
test_dtensor.py, which imports the problem from here.
"""

import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.tables import param_table
from tests.distributed.dtensor_checks import CHECKS, full_copy, run_check
from tests.support.processes import Spy, error_of, run_page, save_and_exit

PROCESSES, STEPS, ROWS = 4, 4, 16
WEIGHTS = {"fit": 0.5, "size": 2.0, "hidden": 3.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.1, "betas": (0.5, 0.9, 0.7)},
    "all": {
        **{"lr": 0.1, "betas": (0.5, 0.9, 0.7), "amsgrad": True, "maximize": True, "weight_decay": 0.1},
        **{"decoupled_weight_decay": True, "norm_init": "first_nonzero", "term_weights": WEIGHTS},
    },
    "balanced": {
        **{"lr": 0.1, "betas": (0.5, 0.9, 0.7), "weight_decay": 0.1},
        **{"anchor": "none", "norms": "corrected", "second_moments": "shared"},
    },
    "anchored": {"lr": 0.1, "betas": (0.5, 0.9, 0.7), "anchor": "hidden", "norms": "peak"},
}


class Network(nn.Module):
    """Return the losses, means over rows; the last one reaches the first layer only.

    Over four processes its shards are unequal: one process has all of the second bias.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 6).double(), nn.Linear(6, 1).double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x).tanh()
        out = self.second(hidden)
        return {
            "fit": (out - x[:, :1]).square().mean(),
            "size": 100 * out.abs().mean(),
            "hidden": hidden.square().mean(),
        }


def batch(t: int) -> Tensor:
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(t), dtype=torch.float64)


def shard_network(*mesh: int) -> Network:
    """Shard a network with FSDP2 over the mesh's last dimension; replicate it over the first of two."""
    network = Network()
    names = ("replicate", "shard")[-len(mesh) :]
    for module in (network.first, network.second, network):
        fully_shard(module, mesh=init_device_mesh("cpu", mesh, mesh_dim_names=names))
    return network


def parallelize_network(mesh: DeviceMesh) -> Network:
    network = Network()
    first, second = ColwiseParallel(output_layouts=Replicate()), RowwiseParallel(input_layouts=Replicate())
    parallelize_module(network, mesh, {"first": first, "second": second})
    return network


def own_rows(t: int, parts: int = PROCESSES, part: int | None = None) -> Tensor:
    return batch(t).chunk(parts)[dist.get_rank() if part is None else part]


def train(
    network: Network,
    optimizer: TermOptimizer,
    rows: Callable[[int], Tensor] = own_rows,
    accumulated: int = 1,
    steps: range = range(STEPS),
) -> list[list[Tensor]]:
    """Return the full parameters after each step; each process gives its rows in ``accumulated`` parts."""
    found = []
    for t in steps:
        optimizer.zero_grad()
        for part in rows(t).chunk(accumulated):
            optimizer.backward({name: loss / accumulated for name, loss in network(part).items()})
        optimizer.step()
        found.append(list(map(full_copy, network.parameters())))
    return found


def train_mtadam(network: Network, backend: str, name: str, **options: Any) -> list[list[Tensor]]:
    optimizer = MTAdam(network.parameters(), **OPTIONS[name], backend=backend)
    return train(network, optimizer, **options)


def train_gathered_once() -> list[list[Tensor]]:
    """Train with term blocks between which the parameters stay gathered."""
    network = shard_network(4)
    optimizer = MTAdam(network.parameters(), **OPTIONS["plain"])
    found = []
    for t in range(STEPS):
        losses = network(own_rows(t))
        for number, (name, loss) in enumerate(losses.items(), start=1):
            network.set_reshard_after_backward(number == len(losses))  # type: ignore[operator]
            with optimizer.term(name):
                loss.backward(retain_graph=number < len(losses))
        optimizer.step()
        found.append(list(map(full_copy, network.parameters())))
    return found


def train_combined(
    network: Network, drawn: float = 1.0, rows: Callable[[int], Tensor] = own_rows, **options: Any
) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """Train with known weights plus ``drawn`` times the rank; return the steps, and the rule's last gram and losses."""
    weights = torch.tensor(list(WEIGHTS.values()), dtype=torch.float64) + drawn * dist.get_rank()
    spy = Spy(lambda _: weights)
    optimizer = CombinedAdam(network.parameters(), spy, lr=0.1, **options)
    return train(network, optimizer, rows), spy.gram, spy.losses


def train_beside_plain_parameters() -> list[list[Tensor]]:
    """Shard the first layer only; the process group averages the gradients of the second."""
    network = Network()
    fully_shard(network.first, mesh=init_device_mesh("cpu", (4,)))
    optimizer = MTAdam(network.parameters(), **OPTIONS["plain"], process_group=dist.group.WORLD)
    return train(network, optimizer)


def train_with_process_group(mesh: DeviceMesh) -> tuple[list[list[Tensor]], tuple[list[list[Tensor]], Tensor, Tensor]]:
    """Return the steps of MTAdam, and what ``train_combined`` returns."""

    def rows(t: int) -> Tensor:
        return own_rows(t, 2, mesh["data"].get_local_rank())

    network, group = parallelize_network(mesh["tensor"]), mesh["data"].get_group()
    optimizer = MTAdam(network.parameters(), **OPTIONS["plain"], process_group=group)
    return train(network, optimizer, rows), train_combined(
        parallelize_network(mesh["tensor"]), rows=rows, process_group=group
    )


def take_combined_gradients() -> list[Tensor]:
    """Return the full ``p.grad`` that the second step leaves."""
    network = shard_network(4)
    optimizer = MTAdam(network.parameters(), **OPTIONS["plain"], keep_combined_grad=True)
    for t in range(2):  # without zero_grad
        optimizer.backward(network(own_rows(t)))
        optimizer.step()
    return [full_copy(p.grad) for p in network.parameters()]


def step_with_inf_in_one_shard(scaled: bool) -> tuple[list[str], list[list[Tensor]]]:
    """Return the errors of three steps, the second with an infinite gradient in one shard; and the parameters."""
    network = shard_network(4)
    optimizer = MTAdam(network.parameters(), check_finite=not scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    errors, params = [], []
    for t in range(3):
        optimizer.zero_grad()
        loss = scaler.scale(network(own_rows(t))["fit"])
        with optimizer.term("fit", loss):
            loss.backward()
            grad = (network.second if scaled else network.first).weight.grad
            if t == 1 and dist.get_rank() == (0 if scaled else 2):  # which alone has the second's
                grad.to_local().fill_(math.inf)  # type: ignore[union-attr]
        errors.append(error_of(lambda: scaler.step(optimizer.scaled) if scaled else optimizer.step()))
        scaler.update()
        params.append(list(map(full_copy, network.parameters())))
    return [*errors, str(scaler.get_scale())], params


def resume(folder: Path, options: dict[str, Any]) -> dict[str, list[list[Tensor]]]:
    """Return the steps after a checkpoint: without a break, and loaded over the same mesh and over another."""
    network = shard_network(4)
    optimizer = MTAdam(network.parameters(), **options)
    train(network, optimizer, steps=range(2))
    model_state, optimizer_state = get_state_dict(network, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder / "checkpoint")
    after = range(2, STEPS)
    found = {"without a break": train(network, optimizer, steps=after)}
    for name, mesh in ("resumed", (4,)), ("resumed over others", (2, 2)), ("resumed, fresh", (4,)):
        network = shard_network(*mesh)
        optimizer = MTAdam(network.parameters(), **options, terms=WEIGHTS if name == "resumed, fresh" else None)
        if name != "resumed, fresh":
            train(network, optimizer, steps=range(1))  # gives it the state that the checkpoint fills
        model_state, optimizer_state = get_state_dict(network, optimizer)
        states = {"model": model_state, "optimizer": optimizer_state}
        # A fresh optimizer has state for all terms in all parameters, more than has been saved.
        planner = DefaultLoadPlanner(allow_partial_load=True) if name == "resumed, fresh" else None
        dcp.load(states, checkpoint_id=folder / "checkpoint", planner=planner)
        set_state_dict(network, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
        found[name] = train(network, optimizer, steps=after)
    return found


def collect_errors() -> dict[str, str]:
    network = shard_network(4)
    optimizer = MTAdam(network.parameters())
    of_tensors = parallelize_network(init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))["tensor"])
    two_by_two = shard_network(2, 2)
    two_by_two_optimizer = MTAdam(two_by_two.parameters())
    weight: Any = network.first.weight
    in_one_piece = MTAdam(Network().double().parameters())
    in_one_piece.backward({"fit": sum(p.square().sum() for p in in_one_piece.param_groups[0]["params"])})
    in_one_piece.step()

    def give_a_gradient() -> None:
        with optimizer.term("other"):
            other = init_device_mesh("cpu", (2, 2))
            weight.grad = DTensor.from_local(torch.ones(6, 5).double(), other, [Replicate(), Replicate()])

    return {
        "process_group": error_of(lambda: MTAdam(of_tensors.parameters(), process_group=dist.group.WORLD)),
        "a new optimizer": error_of(lambda: get_state_dict(of_tensors, MTAdam(of_tensors.parameters()))),
        "pickled": error_of(lambda: pickle.dumps(optimizer)),
        "inputs": error_of(lambda: optimizer.backward(network(own_rows(0)), inputs=[weight])),
        "terms": error_of(lambda: optimizer.backward({"abcd"[dist.get_rank()]: network(own_rows(0))["fit"]})),
        "state": error_of(lambda: optimizer.load_state_dict(in_one_piece.state_dict())),
        "terms, two by two": error_of(
            lambda: two_by_two_optimizer.backward({"aaab"[dist.get_rank()]: two_by_two(own_rows(0))["fit"]})
        ),
        "another mesh": error_of(give_a_gradient),
        "nothing has changed": error_of(optimizer.step) + str(dict(optimizer.state)),
        "not reduced": error_of(backward_without_reduction),
        "of no term": error_of(step_on_gradient_of_no_term),
    }


def backward_without_reduction() -> None:
    network = shard_network(4)
    network.set_requires_gradient_sync(False)  # type: ignore[operator]
    MTAdam(network.parameters()).backward(network(own_rows(0)))


def step_on_gradient_of_no_term() -> None:
    """Step on a gradient that FSDP2 adds to the one that a step has left."""
    network = shard_network(4)
    optimizer = MTAdam(network.parameters(), keep_combined_grad=True)
    optimizer.backward(network(own_rows(0)))
    optimizer.step()
    network(own_rows(1))["fit"].backward()
    optimizer.step()


def main(folder: Path, rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    found: dict[str, Any] = {}
    for backend in ("cpu", "reference"):
        for name in OPTIONS:
            found[f"FSDP2, {name}, {backend}"] = train_mtadam(shard_network(4), backend, name)
        found[f"rule, {backend}"] = train_combined(shard_network(4), backend=backend)
    found["FSDP2 replicated"] = train_mtadam(shard_network(2, 2), "cpu", "plain")
    found["FSDP2, accumulated"] = train_mtadam(shard_network(4), "cpu", "plain", accumulated=2)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    found["tensor parallel"] = train_mtadam(parallelize_network(mesh["tensor"]), "cpu", "plain", rows=batch)
    found["tensor and data parallel"], found["rule, tensor and data parallel"] = train_with_process_group(mesh)
    found["rule, replicated"] = train_combined(shard_network(2, 2))
    found["FSDP2, gathered once"] = train_gathered_once()
    found["FSDP2 beside plain parameters"] = train_beside_plain_parameters()
    found["combined gradients"] = take_combined_gradients()
    found["not finite"], found["scaled"] = (
        step_with_inf_in_one_shard(scaled=False),
        step_with_inf_in_one_shard(scaled=True),
    )
    for name in ("plain", "balanced"):
        found[f"resumed, {name}"] = resume(folder / name, OPTIONS[name])
    found["errors"] = collect_errors()
    found["checks"] = {name: run_check(name) for name in CHECKS}
    found["page"] = list(map(full_copy, run_page("guides/fsdp2.md")))
    param_table.all_reduce_sum_ = lambda values, process_groups: values
    found["local norms"] = train_mtadam(shard_network(4), "cpu", "plain")
    found["rule, local products"] = train_combined(shard_network(4), drawn=0.0)
    save_and_exit(folder, rank, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
