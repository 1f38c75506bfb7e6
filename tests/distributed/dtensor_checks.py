"""Checks of DTensor parameters over four processes; every function runs in all of them at once."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam, Recorder
from mtadam_fused.distributed.dtensor import full_tensor
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import FixedWeights, GradNorm
from oracles.tolerances import same
from tests.support.processes import Spy, error_of


def make_mesh(*mesh: int) -> DeviceMesh:
    return init_device_mesh("cpu", mesh)


def distribute(value: Tensor, *placements: Placement, mesh: DeviceMesh | None = None) -> Any:
    return distribute_tensor(value.clone(), mesh or make_mesh(4), placements or [Shard(0)])


def dtensor_parameter(value: Tensor, *placements: Placement, mesh: DeviceMesh | None = None) -> Any:
    return nn.Parameter(distribute(value, *placements, mesh=mesh))


def full_copy(tensor: Any) -> Tensor:
    """Return a copy of a tensor, whole where it is a DTensor."""
    return full_tensor(tensor).detach().clone()


def step(optimizer: TermOptimizer, *grads: tuple[Any, Tensor]) -> None:
    """Step on given gradients of one term, and a loss."""
    with optimizer.term("a", torch.ones(())):
        for p, grad in grads:
            p.grad = grad
    optimizer.step()


def train(optimizer: TermOptimizer, p: Any, steps: int = 2) -> Tensor:
    """Return the full parameter after some steps on losses of it alone."""
    for _ in range(steps):
        optimizer.backward([p.square().sum(), (p * p * p).sum()])
        optimizer.step()
    return full_copy(p)


def norms_and_products_of_shards_on_a_2d_mesh() -> None:
    value, mesh = torch.arange(24.0).reshape(4, 6) + 1, make_mesh(2, 2)
    placements, spy = (Shard(0), Shard(1)), Spy(torch.ones_like)
    p = dtensor_parameter(value, *placements, mesh=mesh)
    optimizer = MTAdam([p])
    step(optimizer, (p, distribute(value, *placements, mesh=mesh)))
    assert torch.allclose(optimizer.running_norms()["a"], value.norm())
    step(CombinedAdam([p], spy), (p, distribute(value, *placements, mesh=mesh)))
    assert torch.allclose(spy.gram[0, 0], value.double().square().sum())


def products_of_mixed_parameters() -> None:
    """Make a sharded, a replicated and a plain parameter."""
    value, spy = torch.arange(6.0) + 1, Spy(torch.ones_like)
    params = [dtensor_parameter(value), dtensor_parameter(value, Replicate()), nn.Parameter(value.clone())]
    step(CombinedAdam(params, spy), *((p, p.detach().clone()) for p in params))
    assert torch.allclose(spy.gram[0, 0], 3 * value.double().square().sum())


def cosines_are_of_full_gradients() -> None:
    """Mixed parameters. Reading waits for no other process, so one process alone may have a recorder."""
    mesh, placements = make_mesh(2, 2), (Shard(0), Shard(1))
    values = [torch.arange(16.0).reshape(4, 4).double() * (k + 1) for k in range(2)]
    grads = {"a": values[0].sin(), "b": values[1].cos()}
    p, q = dtensor_parameter(values[0]), dtensor_parameter(values[0], *placements, mesh=mesh)
    plain = nn.Parameter(values[0].clone())
    optimizer = CombinedAdam([("p", p), ("q", q), ("plain", plain)], Spy(torch.ones_like))
    recorder = Recorder(optimizer, every=1) if dist.get_rank() == 1 else None
    for term, grad in grads.items():
        with optimizer.term(term, torch.ones(())):
            p.grad, q.grad = distribute(grad), distribute(grad, *placements, mesh=mesh)
            plain.grad = grad.clone()
    optimizer.step()
    expected = torch.cosine_similarity(grads["a"].flatten(), grads["b"].flatten(), dim=0)
    local = torch.cosine_similarity(grads["a"][0], grads["b"][0], dim=0)
    assert not torch.isclose(local, expected, rtol=0.1)
    for found in [optimizer.term_cosines(), *([] if recorder is None else [recorder.rows()[0]["cosine"]])]:
        for name in ("p", "q", "plain"):
            assert torch.isclose(torch.as_tensor(found["a", "b"][name]).double(), expected, rtol=1e-12)


def clipped_norms_are_of_full_gradients() -> None:
    """Mixed parameters: sharded over four, over two by two, and plain."""
    value = torch.arange(16.0).reshape(4, 4).double() + 1
    mesh, placements = make_mesh(2, 2), (Shard(0), Shard(1))
    for make in (MTAdam, lambda params: CombinedAdam(params, FixedWeights())):
        params = [
            dtensor_parameter(value),
            dtensor_parameter(value, *placements, mesh=mesh),
            nn.Parameter(value.clone()),
        ]
        optimizer: Any = make(params)
        with optimizer.term("a", torch.ones(())):
            params[0].grad = distribute(value)
            params[1].grad = distribute(2 * value, *placements, mesh=mesh)
            params[2].grad = 3 * value
        found = optimizer.clip_grad_norm_(7.0)
        norm = found["a"] if isinstance(found, dict) else found
        assert torch.allclose(norm, 14**0.5 * value.norm(), rtol=1e-12)
        optimizer.step()
        if isinstance(optimizer, MTAdam):
            (norms,) = optimizer.running_norms().values()
            assert torch.allclose(norms.norm(), torch.tensor(7.0).double(), rtol=1e-6)


def optimizer_state_of_a_fresh_optimizer() -> None:
    """torch.distributed.checkpoint makes the state, and changes nothing else: the next steps are those without it."""
    for make in (MTAdam, BalancedAdam, lambda params, **options: CombinedAdam(params, FixedWeights(), **options)):
        params = []
        for asked in (True, False):
            network = nn.Sequential(nn.Linear(4, 4)).double()
            with torch.no_grad():
                for p in network.parameters():
                    p.copy_(torch.arange(float(p.numel())).reshape(p.shape))
            fully_shard(network)
            optimizer: Any = make(network.parameters(), lr=0.25, terms=("a", "b"))
            if asked:
                state: Any = get_optimizer_state_dict(network, optimizer)["state"]
                assert {"step", "exp_avg"} <= set(state["0.weight"])
                assert optimizer.param_groups[0]["lr"] == 0.25
            for _ in range(2):
                out = network(torch.ones(2, 4).double())
                optimizer.backward({"a": out.square().mean(), "b": out.sin().mean()})
                optimizer.step()
            params.append([full_copy(p) for p in network.parameters()])
        assert same(*params)


def norms_whose_squares_overflow() -> None:
    p = dtensor_parameter(torch.ones(8))
    optimizer = MTAdam([p])
    step(optimizer, (p, distribute(torch.full((8,), 1e19))))  # of two, the sum of squares is below the largest float32
    assert torch.allclose(optimizer.running_norms()["a"], torch.tensor(8**0.5 * 1e19))


def partial_gradients_are_summed() -> None:
    params = [dtensor_parameter(torch.ones(6), placement) for placement in (Replicate(), Shard(0))]
    optimizer = MTAdam(params)
    own = torch.arange(6.0) * (1 + dist.get_rank())
    step(optimizer, *((p, DTensor.from_local(own, make_mesh(4), [Partial()])) for p in params))
    assert torch.allclose(optimizer.running_norms()["a"], 10 * torch.arange(6.0).norm().expand(2))


def async_gradients() -> None:
    p = dtensor_parameter(torch.arange(8.0))
    optimizer = MTAdam([p], lr=0.1)
    gathered = p.redistribute(placements=[Replicate()], async_op=True).to_local(grad_placements=[Partial()])
    optimizer.backward([(gathered * (1 + torch.arange(8.0))).sum()])
    optimizer.step()
    assert torch.allclose(full_copy(p), torch.arange(8.0) - 0.1, atol=1e-6)


def shards_with_gaps_in_memory() -> None:
    value = torch.arange(32.0).reshape(4, 8) - 9
    own = value.repeat_interleave(2, dim=1).chunk(4, dim=1)[dist.get_rank()][:, ::2]
    p, q = nn.Parameter(DTensor.from_local(own, make_mesh(4), [Shard(1)])), nn.Parameter(value.clone())
    assert torch.allclose(train(MTAdam([p], lr=0.1), p), train(MTAdam([q], lr=0.1), q))


def shards_that_move() -> None:
    other, p = nn.Parameter(torch.ones(3).double()), dtensor_parameter(torch.ones(8))
    optimizer = MTAdam([other, p], lr=0.1)
    grads = (other, torch.ones(3).double()), (p, distribute(torch.ones(8)))
    step(optimizer, *grads)
    p._local_tensor = p._local_tensor.clone()
    before = full_copy(p)
    step(optimizer, *grads)
    assert (full_copy(p) < before - 0.05).all()


def state_that_moves() -> None:
    p = dtensor_parameter(torch.ones(8))
    optimizer = MTAdam([p], lr=0.1)
    step(optimizer, (p, distribute(torch.ones(8))))
    for value in optimizer.state[p].values():
        if isinstance(value, DTensor):
            value._local_tensor = value._local_tensor.clone()
    before = full_copy(optimizer.state[p]["exp_avg"])
    step(optimizer, (p, distribute(torch.ones(8))))
    assert not torch.equal(full_copy(optimizer.state[p]["exp_avg"]), before)


def graphs_from_before_a_step_are_refused() -> None:
    p = dtensor_parameter(torch.ones(8))
    stale = (p.to_local() ** 2).sum(), (p * p).sum()
    step(MTAdam([p]), (p, distribute(torch.ones(8))))
    for loss in stale:
        assert "inplace" in error_of(loss.backward)


def combined_gradients_are_the_users_when_changed() -> None:
    for backend in ("cpu", "reference"):
        p = dtensor_parameter(torch.ones(4, 8), Shard(1))
        optimizer = MTAdam([p], keep_combined_grad=True, backend=backend)
        train(optimizer, p)
        assert p.grad.stride() == p.stride()
        p.grad.mul_(2)
        assert "belongs to no term" in error_of(lambda opt=optimizer, q=p: train(opt, q))  # type: ignore[misc]


def optimizers_with_another_group_and_copies() -> None:
    value = torch.arange(6.0)
    p, q = dtensor_parameter(value), nn.Parameter(value.clone())
    first = MTAdam([nn.Parameter(torch.ones(2))], lr=0.1)
    first.add_param_group({"params": [p]})
    second = copy.deepcopy(first)
    expected = train(MTAdam([q], lr=0.1), q)
    for optimizer in (first, second):
        assert torch.allclose(train(optimizer, optimizer.param_groups[1]["params"][0]), expected)


def dtensor_losses() -> None:
    """Check that the scaled losses stay as they are for a rule that needs them."""
    params = [dtensor_parameter(torch.arange(6.0)), nn.Parameter(torch.arange(6.0))]
    for p in params:
        optimizer, scaler = CombinedAdam([p], GradNorm(), lr=0.1), torch.amp.GradScaler("cpu")
        for _ in range(3):
            losses = {"a": scaler.scale((p - 1).square().sum()), "b": scaler.scale(100 * p.abs().mean())}
            before = [full_copy(loss) for loss in losses.values()]
            optimizer.backward(losses)
            scaler.step(optimizer.scaled)
            scaler.update()
            assert same(map(full_copy, losses.values()), before)
    assert torch.allclose(full_copy(params[0]), params[1], rtol=1e-6, atol=1e-6)


def inputs_that_a_loss_does_not_reach() -> None:
    params = [dtensor_parameter(torch.ones(6)) for _ in range(2)]
    optimizer = MTAdam(params)
    optimizer.backward([params[0].sum()], inputs=params)
    optimizer.backward([params[0].sum()], inputs=params[0])
    optimizer.step()
    assert params[1] not in optimizer.state


def state_with_other_placements_is_refused() -> None:
    p, q = (dtensor_parameter(torch.ones(8, 8), Shard(dim)) for dim in range(2))
    first, second = MTAdam([p]), MTAdam([q])
    train(first, p)
    error = error_of(lambda: second.load_state_dict(first.state_dict()))
    assert "exp_avg of parameter 0 is (Shard(dim=0),) on DeviceMesh" in error


def partial_parameters_are_refused() -> None:
    p = nn.Parameter(DTensor.from_local(torch.ones(2), make_mesh(2, 2), [Partial(), Replicate()]))
    assert "redistribute it first, which makes the pending sum" in error_of(lambda: MTAdam([p]))


def parameters_outside_of_this_rank_are_refused() -> None:
    of_two = nn.Parameter(DTensor.from_local(torch.ones(2), DeviceMesh("cpu", [0, 1]), [Replicate()]))
    error = error_of(lambda: MTAdam([of_two]))
    assert (error == "none") if dist.get_rank() < 2 else ("is not on that mesh; leave the parameter out" in error)


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        *(norms_and_products_of_shards_on_a_2d_mesh, products_of_mixed_parameters, norms_whose_squares_overflow),
        cosines_are_of_full_gradients,
        *(clipped_norms_are_of_full_gradients, optimizer_state_of_a_fresh_optimizer),
        *(partial_gradients_are_summed, async_gradients, shards_with_gaps_in_memory, shards_that_move),
        state_that_moves,
        *(graphs_from_before_a_step_are_refused, combined_gradients_are_the_users_when_changed),
        *(optimizers_with_another_group_and_copies, dtensor_losses, inputs_that_a_loss_does_not_reach),
        *(state_with_other_placements_is_refused, partial_parameters_are_refused),
        parameters_outside_of_this_rank_are_refused,
    )
}


def run_check(name: str) -> str:
    """Run a check in this process; return "holds", or the error."""
    try:
        CHECKS[name]()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "holds"
