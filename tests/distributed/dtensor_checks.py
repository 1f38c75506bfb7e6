"""What holds of parameters that are spread over four processes; every function runs in all of them at once."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.distributed.dtensor import full_tensor
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import GradNorm
from oracles.tolerances import same
from tests.support.processes import Spy, error_of


def over(*mesh: int) -> DeviceMesh:
    return init_device_mesh("cpu", mesh)


def spread(value: Tensor, *placements: Placement, mesh: DeviceMesh | None = None) -> Any:
    return distribute_tensor(value.clone(), mesh or over(4), placements or [Shard(0)])


def spread_parameter(value: Tensor, *placements: Placement, mesh: DeviceMesh | None = None) -> Any:
    return nn.Parameter(spread(value, *placements, mesh=mesh))


def whole(tensor: Any) -> Tensor:
    return full_tensor(tensor).detach().clone()


def step(optimizer: TermOptimizer, *grads: tuple[Any, Tensor]) -> None:
    """On given gradients of one term, and a loss."""
    with optimizer.term("a", torch.ones(())):
        for p, grad in grads:
            p.grad = grad
    optimizer.step()


def train(optimizer: TermOptimizer, p: Any, steps: int = 2) -> Tensor:
    """The parameter after some steps on losses of it alone."""
    for _ in range(steps):
        optimizer.backward([p.square().sum(), (p * p * p).sum()])
        optimizer.step()
    return whole(p)


def norms_and_products_of_parts_in_two_directions() -> None:
    value, mesh = torch.arange(24.0).reshape(4, 6) + 1, over(2, 2)
    placements, spy = (Shard(0), Shard(1)), Spy(torch.ones_like)
    p = spread_parameter(value, *placements, mesh=mesh)
    optimizer = MTAdam([p])
    step(optimizer, (p, spread(value, *placements, mesh=mesh)))
    assert torch.allclose(optimizer.running_norms()["a"], value.norm())
    step(CombinedAdam([p], spy), (p, spread(value, *placements, mesh=mesh)))
    assert torch.allclose(spy.gram[0, 0], value.double().square().sum())


def products_of_mixed_parameters() -> None:
    """One in parts, one repeated, one in one piece."""
    value, spy = torch.arange(6.0) + 1, Spy(torch.ones_like)
    params = [spread_parameter(value), spread_parameter(value, Replicate()), nn.Parameter(value.clone())]
    step(CombinedAdam(params, spy), *((p, p.detach().clone()) for p in params))
    assert torch.allclose(spy.gram[0, 0], 3 * value.double().square().sum())


def norms_whose_squares_overflow() -> None:
    p = spread_parameter(torch.ones(8))
    optimizer = MTAdam([p])
    step(optimizer, (p, spread(torch.full((8,), 1e19))))  # of two, the sum of squares is below the largest float32
    assert torch.allclose(optimizer.running_norms()["a"], torch.tensor(8**0.5 * 1e19))


def gradients_that_are_still_to_be_summed() -> None:
    params = [spread_parameter(torch.ones(6), placement) for placement in (Replicate(), Shard(0))]
    optimizer = MTAdam(params)
    own = torch.arange(6.0) * (1 + dist.get_rank())
    step(optimizer, *((p, DTensor.from_local(own, over(4), [Partial()])) for p in params))
    assert torch.allclose(optimizer.running_norms()["a"], 10 * torch.arange(6.0).norm().expand(2))


def gradients_under_way() -> None:
    p = spread_parameter(torch.arange(8.0))
    optimizer = MTAdam([p], lr=0.1)
    gathered = p.redistribute(placements=[Replicate()], async_op=True).to_local(grad_placements=[Partial()])
    optimizer.backward([(gathered * (1 + torch.arange(8.0))).sum()])
    optimizer.step()
    assert torch.allclose(whole(p), torch.arange(8.0) - 0.1, atol=1e-6)


def parts_with_gaps_in_memory() -> None:
    value = torch.arange(32.0).reshape(4, 8) - 9
    own = value.repeat_interleave(2, dim=1).chunk(4, dim=1)[dist.get_rank()][:, ::2]
    p, q = nn.Parameter(DTensor.from_local(own, over(4), [Shard(1)])), nn.Parameter(value.clone())
    assert torch.allclose(train(MTAdam([p], lr=0.1), p), train(MTAdam([q], lr=0.1), q))


def parts_that_move() -> None:
    other, p = nn.Parameter(torch.ones(3).double()), spread_parameter(torch.ones(8))
    optimizer = MTAdam([other, p], lr=0.1)
    grads = (other, torch.ones(3).double()), (p, spread(torch.ones(8)))
    step(optimizer, *grads)
    p._local_tensor = p._local_tensor.clone()
    before = whole(p)
    step(optimizer, *grads)
    assert (whole(p) < before - 0.05).all()


def state_that_moves() -> None:
    p = spread_parameter(torch.ones(8))
    optimizer = MTAdam([p], lr=0.1)
    step(optimizer, (p, spread(torch.ones(8))))
    for value in optimizer.state[p].values():
        if isinstance(value, DTensor):
            value._local_tensor = value._local_tensor.clone()
    before = whole(optimizer.state[p]["exp_avg"])
    step(optimizer, (p, spread(torch.ones(8))))
    assert not torch.equal(whole(optimizer.state[p]["exp_avg"]), before)


def graphs_from_before_a_step_are_refused() -> None:
    p = spread_parameter(torch.ones(8))
    stale = (p.to_local() ** 2).sum(), (p * p).sum()
    step(MTAdam([p]), (p, spread(torch.ones(8))))
    for loss in stale:
        assert "inplace" in error_of(loss.backward)


def combined_gradients_are_the_users_when_changed() -> None:
    for backend in ("cpu", "reference"):
        p = spread_parameter(torch.ones(4, 8), Shard(1))
        optimizer = MTAdam([p], keep_combined_grad=True, backend=backend)
        train(optimizer, p)
        assert p.grad.stride() == p.stride()
        p.grad.mul_(2)
        assert "belongs to no term" in error_of(lambda opt=optimizer, q=p: train(opt, q))  # type: ignore[misc]


def extended_and_copied_optimizers() -> None:
    value = torch.arange(6.0)
    p, q = spread_parameter(value), nn.Parameter(value.clone())
    first = MTAdam([nn.Parameter(torch.ones(2))], lr=0.1)
    first.add_param_group({"params": [p]})
    second = copy.deepcopy(first)
    expected = train(MTAdam([q], lr=0.1), q)
    for optimizer in (first, second):
        assert torch.allclose(train(optimizer, optimizer.param_groups[1]["params"][0]), expected)


def losses_that_are_spread() -> None:
    """A rule that looks at losses, and scaled ones, which stay as they are."""
    params = [spread_parameter(torch.arange(6.0)), nn.Parameter(torch.arange(6.0))]
    for p in params:
        optimizer, scaler = CombinedAdam([p], GradNorm(), lr=0.1), torch.amp.GradScaler("cpu")
        for _ in range(3):
            losses = {"a": scaler.scale((p - 1).square().sum()), "b": scaler.scale(100 * p.abs().mean())}
            before = [whole(loss) for loss in losses.values()]
            optimizer.backward(losses)
            scaler.step(optimizer.scaled)
            scaler.update()
            assert same(map(whole, losses.values()), before)
    assert torch.allclose(whole(params[0]), params[1], rtol=1e-6, atol=1e-6)


def inputs_that_a_loss_does_not_reach() -> None:
    params = [spread_parameter(torch.ones(6)) for _ in range(2)]
    optimizer = MTAdam(params)
    optimizer.backward([params[0].sum()], inputs=params)
    optimizer.backward([params[0].sum()], inputs=params[0])
    optimizer.step()
    assert params[1] not in optimizer.state


def state_in_other_parts_is_refused() -> None:
    p, q = (spread_parameter(torch.ones(8, 8), Shard(dim)) for dim in range(2))
    first, second = MTAdam([p]), MTAdam([q])
    train(first, p)
    error = error_of(lambda: second.load_state_dict(first.state_dict()))
    assert "exp_avg of parameter 0 is (Shard(dim=0),) on DeviceMesh" in error


def sums_that_are_to_be_made_in_one_direction_are_refused() -> None:
    p = nn.Parameter(DTensor.from_local(torch.ones(2), over(2, 2), [Partial(), Replicate()]))
    assert "redistribute it first, which makes the pending sum" in error_of(lambda: MTAdam([p]))


def parameters_elsewhere_are_refused() -> None:
    of_two = nn.Parameter(DTensor.from_local(torch.ones(2), DeviceMesh("cpu", [0, 1]), [Replicate()]))
    error = error_of(lambda: MTAdam([of_two]))
    assert (error == "none") if dist.get_rank() < 2 else ("is not on that mesh; leave the parameter out" in error)


USES: dict[str, Callable[[], None]] = {
    use.__name__: use
    for use in (
        *(norms_and_products_of_parts_in_two_directions, products_of_mixed_parameters, norms_whose_squares_overflow),
        *(gradients_that_are_still_to_be_summed, gradients_under_way, parts_with_gaps_in_memory, parts_that_move),
        state_that_moves,
        *(graphs_from_before_a_step_are_refused, combined_gradients_are_the_users_when_changed),
        *(extended_and_copied_optimizers, losses_that_are_spread, inputs_that_a_loss_does_not_reach),
        *(state_in_other_parts_is_refused, sums_that_are_to_be_made_in_one_direction_are_refused),
        parameters_elsewhere_are_refused,
    )
}


def outcome(use: str) -> str:
    """Whether it holds in this process, or what was wrong."""
    try:
        USES[use]()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "holds"
