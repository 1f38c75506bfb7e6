"""Changes by users between steps, or between backward and step: memory, shapes, layouts, types, parameters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import MTAdam


def start(backend: str, *sizes: int) -> tuple[MTAdam, list[nn.Parameter]]:
    params = [nn.Parameter(torch.linspace(1, 2, n)) for n in sizes]
    optimizer = MTAdam(params, lr=0.1, backend=backend)
    step(optimizer, params)
    return optimizer, params


def run_backward(optimizer: MTAdam, params: list[nn.Parameter]) -> None:
    optimizer.backward(
        [torch.stack([p.square().sum() for p in params]).sum(), torch.stack([3 * p.sum() for p in params]).sum()]
    )


def step(optimizer: MTAdam, params: list[nn.Parameter]) -> None:
    run_backward(optimizer, params)
    optimizer.step()


def clone(value: Tensor) -> None:
    value.data = value.data.clone()


@pytest.mark.parametrize("exchange", [clone, Tensor.share_memory_])
def test_the_memory_of_all_state(exchange: Callable[[Tensor], object], backend: str) -> None:
    (changed, p), (same, q) = start(backend, 5, 7), start(backend, 5, 7)
    for state in changed.state.values():
        for value in state.values():
            exchange(value)
    for _ in range(2):
        step(changed, p)
        step(same, q)
    for a, b in zip(p, q, strict=True):
        assert torch.equal(a, b)
        for name, value in changed.state[a].items():
            assert torch.equal(value, same.state[b][name]), name


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_parameter_of_another_shape_needs_new_state(size: int, backend: str) -> None:
    optimizer, (p, q) = start(backend, 5, 7)
    p.data = p.data[:size] if size < 5 else torch.ones(size)
    before = q.detach().clone()
    with pytest.raises(
        RuntimeError, match=rf"parameter 0 has shape \({size},\), but its state exp_avg has shape \(5,\)"
    ):
        step(optimizer, [p, q])
    assert torch.equal(q, before)
    del optimizer.state[p]
    optimizer.zero_grad()
    step(optimizer, [p, q])
    assert optimizer.state[p]["exp_avg"].shape == (size,)
    assert optimizer.running_norms()[1][0].item() == pytest.approx(3 * size**0.5)


@pytest.mark.parametrize("change", [lambda p: p.double(), lambda p: torch.ones(9), lambda p: p[:2]])
def test_a_parameter_that_changes_after_backward(change: Callable[[Tensor], Tensor], backend: str) -> None:
    optimizer, (p, q) = start(backend, 5, 7)
    run_backward(optimizer, [p, q])
    kept = p.data
    p.data = change(p.data)
    before = q.detach().clone()
    with pytest.raises(RuntimeError, match=r"parameter 0 has become .* since its gradient was taken"):
        optimizer.step()
    assert torch.equal(q, before)
    p.data = kept
    optimizer.step()  # nothing was lost
    assert not torch.equal(q, before)


@pytest.mark.parametrize("change", [lambda p: p.double(), lambda p: torch.ones(9), lambda p: p[:2]])
def test_a_parameter_that_has_its_memory_back_at_the_step(change: Callable[[Tensor], Tensor], backend: str) -> None:
    optimizer, (p, q) = start(backend, 5, 7)
    kept, p.data = p.data, change(p.data)
    run_backward(optimizer, [p, q])
    p.data = kept
    before = q.detach().clone()
    with pytest.raises(RuntimeError, match=r"parameter 0 has become .* since its gradient was taken"):
        optimizer.step()
    assert torch.equal(q, before)
    optimizer.zero_grad()
    step(optimizer, [p, q])
    assert not torch.equal(q, before)


def test_a_layout_that_changes_after_backward(backend: str) -> None:
    def run(change: bool) -> Tensor:
        torch.manual_seed(0)
        convolution = nn.Conv2d(3, 4, 2)
        optimizer = MTAdam(convolution.parameters(), lr=0.1, backend=backend)
        for _ in range(2):
            output = convolution(torch.randn(2, 3, 5, 5))
            optimizer.backward([output.square().sum(), output.sum()])
            if change:
                convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            optimizer.step()
        return convolution.weight.detach()

    torch.testing.assert_close(run(True), run(False))


def test_parameters_that_leave_or_are_exchanged_after_backward(backend: str) -> None:
    optimizer, (p, q) = start(backend, 5, 5)
    run_backward(optimizer, [p, q])
    group = optimizer.param_groups[0]
    for params in ([q], [q, p], []):
        group["params"] = params
        with pytest.raises(RuntimeError, match="have left the optimizer, or were exchanged"):
            optimizer.step()
    group["params"] = [p, q]
    optimizer.step()


def test_gradients_with_the_negative_bit(backend: str) -> None:
    p = nn.Parameter(torch.ones(6))
    optimizer = MTAdam([p], lr=0.5, betas=(0.0, 0.0, 0.0), backend=backend)
    for after in (1.5, 2.0):  # the second step has its tables already
        with optimizer.term(0):
            p.grad = torch._neg_view(torch.full((6,), 2.0))
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.full((6,), after))


def test_what_users_keep_in_the_state_is_left_alone(backend: str) -> None:
    optimizer, (p,) = start(backend, 5)
    kept = torch.ones(2, dtype=torch.float64)
    optimizer.state[p] |= {"note": 3, "kept": kept}
    step(optimizer, [p])
    assert optimizer.state[p]["kept"] is kept
    assert optimizer.state[p]["step"] == 2


def test_inputs_may_be_a_generator() -> None:
    model = nn.Linear(3, 2)
    optimizer = MTAdam(model.parameters(), lr=0.1)
    output = model(torch.ones(4, 3))
    optimizer.backward([output.sum(), output.square().sum()], inputs=model.parameters())
    optimizer.step()
    assert len(optimizer.running_norms()) == 2


def test_a_gradient_added_to_the_one_that_was_left_is_of_no_term(backend: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p], lr=0.1, keep_combined_grad=True, backend=backend)
    for _ in range(2):  # what was left may stay
        optimizer.backward([p.sum()])
        optimizer.step()
    p.sum().backward()
    with pytest.raises(RuntimeError, match="belongs to no term"):
        optimizer.step()


def test_another_type_at_the_same_address(backend: str) -> None:
    memory = torch.zeros(256, dtype=torch.uint8)
    wide, narrow = memory.view(torch.float32), memory[:128].view(torch.bfloat16)
    p, q = nn.Parameter(wide), nn.Parameter(torch.ones(64))
    p.data.fill_(1.0)
    ours, other = (MTAdam([parameter], lr=0.5, backend=backend) for parameter in (p, q))
    for parameter, optimizer in ((p, ours), (q, other)):
        run_backward(optimizer, [parameter])
        optimizer.step()
        values = parameter.data.bfloat16()
        memory[128:].fill_(7)
        parameter.data = narrow.copy_(values) if parameter is p else values
        run_backward(optimizer, [parameter])
        optimizer.step()
    assert torch.equal(p, q)
    assert memory[128:].eq(7).all()  # beyond the parameter
