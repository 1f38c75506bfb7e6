"""Train a network as one of two processes, each with half of every batch.

``python -m tests.distributed.ddp_worker FOLDER RANK INIT_METHOD`` saves the results in the folder for test_ddp.py,
which imports the problem from here.
"""

import contextlib
import copy
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.distributed import communicator
from mtadam_fused.distributed.communicator import Communicator
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import FixedWeights, PCGrad
from oracles.tolerances import same
from tests.support.processes import Spy, error_of, run_page, save_and_exit

all_reduce: Any = dist.all_reduce
STEPS, ROWS = 4, 8
OPTIONS: dict[str, Any] = {"lr": 0.1, "betas": (0.5, 0.9, 0.7)}
BALANCED = OPTIONS | {"anchor": "none", "norms": "corrected", "second_moments": "shared", "weight_decay": 0.1}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batch(t: int) -> Tensor:
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(t), dtype=torch.float64)


def losses(model: nn.Module, first_weight: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return the losses, means over rows; the last one reaches one parameter only."""
    out = model(x)
    return {
        "a": (out - x[:, :3]).square().mean(),
        "b": 100 * out.abs().mean(),
        "decay": first_weight.square().mean(),
    }


def gradients(rank: int) -> list[Tensor | None]:
    """Return gradients of many types, sizes and layouts."""
    torch.manual_seed(rank)
    found: list[Tensor | None] = [None, torch.full((3,), 60_000.0, dtype=torch.float16)]  # whose sum is too large
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        found += [torch.randn(n).to(dtype) for n in (1, 0, 7, 1000)]
        found += [torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last), None]
        found += [torch.randn(5, 3).to(dtype).t(), torch.randn(()).to(dtype)]
    return found


class LateAllReduce:
    """An all_reduce that runs only when somebody waits for it."""

    def __init__(self, values: Tensor, group: Any, async_op: bool) -> None:
        self.wait = lambda: all_reduce(values, group=group)


def train(
    optimizer: TermOptimizer, model: nn.Module, parts: int = 1, *, synchronized: bool = False
) -> list[list[Tensor]]:
    """Return the parameters after each step; each process gives its rows in ``parts`` parts."""
    rank = dist.get_rank()
    weight = next(model.parameters())
    found = []
    for t in range(STEPS):
        optimizer.zero_grad()
        for rows in batch(t).chunk(2)[rank].chunk(parts):
            with contextlib.nullcontext() if synchronized else model.no_sync():  # type: ignore[operator]
                optimizer.backward({name: loss / parts for name, loss in losses(model, weight, rows).items()})
        optimizer.step()
        found.append([p.detach().clone() for p in model.parameters()])
    return found


def average_gradients(rank: int) -> list[Tensor | None]:
    grads = gradients(rank)
    averages = Communicator(dist.group.WORLD)
    averages.all_reduce_mean_async(grads)
    averages.wait()
    return grads


def record_order_of_work(model: DistributedDataParallel) -> list[str]:
    """Return the order of backward passes and averages in the second step."""
    events = []

    def note(*args: Any, async_op: bool = False, **options: Any) -> Any:
        events.append("async average" if async_op else "average")
        return all_reduce(*args, async_op=async_op, **options)

    optimizer = MTAdam(model.parameters(), process_group=dist.group.WORLD)
    train(optimizer, model)
    optimizer.zero_grad()
    dist.all_reduce = note
    with model.no_sync():
        of_terms = losses(model, next(model.parameters()), batch(0))
        for loss in of_terms.values():
            loss.register_hook(lambda _: events.append("backward"))
        optimizer.backward(of_terms)
    events.append("step")
    optimizer.step()
    dist.all_reduce = all_reduce
    return events


def make_model_and_optimizer(**options: Any) -> tuple[nn.Sequential, MTAdam]:
    model = network()
    return model, MTAdam(model.parameters(), **OPTIONS, process_group=dist.group.WORLD, **options)


def step_with_nan_in_one_process() -> tuple[list[str], list[Tensor]]:
    """Return the errors of three steps, the second with a NaN loss in one process; and the parameters."""
    model, optimizer = make_model_and_optimizer(check_finite=True)
    errors = []
    for t in range(3):
        factor = float("nan") if t == 1 and dist.get_rank() else 1.0
        optimizer.zero_grad()
        optimizer.backward({"a": factor * model(batch(t)).square().mean()})
        errors.append(error_of(optimizer.step))
    return errors, list(model.state_dict().values())


def step_scaled_with_inf_in_one_process(*, loss_only: bool) -> tuple[float, list[Tensor]]:
    """Return the scale after a step where one process's loss and gradients are infinite; and the parameters.

    Args:
        loss_only: whether its gradients are finite.
    """
    model, optimizer = make_model_and_optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = scaler.scale(model(batch(0)).square().mean())
    infinite = loss / (1 - dist.get_rank())
    with optimizer.term("a", infinite):
        (loss if loss_only else infinite).backward()
    scaler.step(optimizer.scaled)
    scaler.update()
    return scaler.get_scale(), list(model.state_dict().values())


def warnings_of_first_step(make: Callable[[Any], TermOptimizer]) -> list[str]:
    """Return the warnings of two steps, each with its own batch in each process."""
    model = network()
    optimizer = make(model.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            optimizer.backward({"a": model(batch(dist.get_rank())).square().mean()})
            optimizer.step()
    return [str(warning.message) for warning in caught]


class AllReduceFailing:
    """An all_reduce that fails at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("the network is gone")


class AllReduceFailingLate:
    """An all_reduce that fails when somebody waits for it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.wait = AllReduceFailing


def fail_averages(failing: type) -> tuple[str, bool]:
    """Return the error of a step whose averages fail, and whether the parameters stay the same in the step after it."""
    model, optimizer = make_model_and_optimizer()
    optimizer.backward({"a": model(batch(0)).square().mean()})
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    dist.all_reduce = failing

    def step() -> None:
        optimizer.backward({"a": model(batch(0)).square().mean()})
        optimizer.step()

    error = error_of(step)
    dist.all_reduce = all_reduce
    optimizer.step()
    return error, same(model.parameters(), before)


def copy_steps_alike() -> bool:
    """Return whether a deep copy steps as the original does."""
    model, optimizer = make_model_and_optimizer()
    both = [(model, optimizer), copy.deepcopy((model, optimizer))]
    for net, its in both:
        its.backward({"a": net(batch(dist.get_rank())).square().mean()})
        its.step()
    return same(model.parameters(), both[1][0].parameters())


def main(folder: Path, rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    group = dist.group.WORLD
    groups = [dist.new_group([i]) for i in range(2)]
    found: dict[str, Any] = {}

    def wrap_network(**options: Any) -> DistributedDataParallel:
        return DistributedDataParallel(network(), **options)

    model = wrap_network()
    found["no_sync"] = train(MTAdam(model.parameters(), **OPTIONS, process_group=group), model)
    model = wrap_network()
    found["balanced"] = train(MTAdam(model.parameters(), **BALANCED, process_group=group), model)
    model = wrap_network(gradient_as_bucket_view=True)
    optimizer = MTAdam(model.parameters(), **OPTIONS, process_group=group)
    dist.all_reduce = LateAllReduce  # type: ignore[assignment]
    found["synchronized, in parts"] = train(optimizer, model, parts=2, synchronized=True)
    dist.all_reduce = all_reduce
    for name, alone in ("not averaged", None), ("a group for each", groups[rank]):
        model = wrap_network()
        found[name] = train(MTAdam(model.parameters(), **OPTIONS, process_group=alone), model)
    train(CombinedAdam(model.parameters(), Spy(torch.rand_like), process_group=groups[rank]), model)

    for name in ("rule", "rule, not agreed"):
        if name == "rule, not agreed":
            Communicator.broadcast_first = lambda _, values: values  # type: ignore
        model, spy = wrap_network(), Spy(torch.rand_like)
        torch.manual_seed(rank)
        found[name] = train(CombinedAdam(model.parameters(), spy, lr=0.1, process_group=group), model)
        found[f"{name}: seen"] = spy.gram, spy.losses

    found["page"] = run_page("guides/ddp.md")
    found["order"] = record_order_of_work(wrap_network())
    found["averages"] = average_gradients(rank)
    communicator.BUCKET_BYTES = 100
    found["averages, in many parts"] = average_gradients(rank)
    found["not a member"] = error_of(lambda: MTAdam(network().parameters(), process_group=groups[1 - rank]))
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MTAdam([p, q], process_group=group)
    optimizer.backward({"a": p.sum() + q.sum()})
    found["other terms"] = error_of(lambda: MTAdam([p], process_group=group).backward({"ab"[rank]: p.sum()}))
    found["other parameters"] = error_of(lambda: optimizer.backward({"a": p.sum(), "b": (p, q)[rank].sum()}))
    found["terms"], found["after it"] = optimizer.terms, error_of(optimizer.step)
    found["not finite"] = step_with_nan_in_one_process()
    for name, loss_only in ("scaled", False), ("scaled, infinite loss", True):
        found[name] = step_scaled_with_inf_in_one_process(loss_only=loss_only)
    found["warnings"] = {
        "no group": warnings_of_first_step(lambda params: MTAdam(params)),
        "a group": warnings_of_first_step(lambda params: MTAdam(params, process_group=group)),
        "one pass": warnings_of_first_step(lambda params: CombinedAdam(params, FixedWeights())),
        "one pass, weights of the batch": warnings_of_first_step(
            lambda params: CombinedAdam(params := list(params), PCGrad(parameters=params))
        ),
        "pass per term": warnings_of_first_step(lambda params: CombinedAdam(params, PCGrad())),
    }
    found["failures"] = [fail_averages(AllReduceFailing), fail_averages(AllReduceFailingLate)]
    found["copied"], found["pickled"] = copy_steps_alike(), error_of(lambda: pickle.dumps(optimizer))
    save_and_exit(folder, rank, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
