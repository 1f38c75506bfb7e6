"""Gradients taken from the loss terms: backward, term, accumulation, absent terms, groups, schedules."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.backends import Backend
from mtadam_fused.rules import FixedWeights
from oracles.tolerances import same
from tests.support.cases import check_combined_gradients, check_wide_gradients


def model_and_losses(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    out = model(torch.randn(16, 4, dtype=torch.float64))
    return model, {"fit": (out[:, 0] - 1).square().mean(), "size": 1000 * out[:, 1].abs().mean()}


def copy_params(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def step_by(route: str, backend: str, **options) -> list[Tensor]:
    model, losses = model_and_losses()
    optimizer = MTAdam(model.parameters(), backend=backend, **options)
    if route == "mapping":
        optimizer.backward(losses)
    elif route == "sequence":
        optimizer.backward(list(losses.values()))
    elif route == "term":
        for name, loss in losses.items():
            with optimizer.term(name):
                loss.backward(retain_graph=True)
    elif route == "position":
        for i, loss in enumerate(losses.values()):
            with optimizer.term(i):
                loss.backward(retain_graph=True)
    elif route == "autograd.grad":
        grads = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses.values()]
        for name, of_term in zip(losses, grads, strict=True):
            with optimizer.term(name):
                for p, g in zip(model.parameters(), of_term, strict=True):
                    p.grad = g
    optimizer.step()
    return copy_params(model)


@pytest.mark.parametrize("route", ["sequence", "term", "position", "autograd.grad"])
def test_all_routes_make_the_same_step(route: str, backend: str) -> None:
    expected = step_by("mapping", backend)
    assert same(step_by(route, backend), expected)
    assert not same(step_by(route, backend, lr=0.1), expected)


def test_graph_is_freed_with_the_last_term_unless_retained(backend: str) -> None:
    model, losses = model_and_losses()
    optimizer = MTAdam(model.parameters(), backend=backend)
    optimizer.backward(losses, retain_graph=True)
    optimizer.backward(losses)
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward(losses)


def test_inputs_limits_what_is_differentiated(backend: str) -> None:
    model, losses = model_and_losses()
    before = copy_params(model)
    optimizer = MTAdam(model.parameters(), backend=backend)
    optimizer.backward(losses, inputs=list(model.parameters())[2:])
    optimizer.step()
    after = copy_params(model)
    assert same(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


def test_entering_a_term_again_adds(backend: str) -> None:
    def run(parts: int) -> list[Tensor]:
        model, _ = model_and_losses()
        optimizer = MTAdam(model.parameters(), backend=backend)
        x = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for part in x.chunk(parts):
            out = model(part)
            optimizer.backward({"a": out[:, 0].sum(), "b": out[:, 1].square().sum()})
        optimizer.step()
        return copy_params(model)

    for a, b in zip(run(1), run(4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_are_taken_without_a_copy() -> None:
    model, _ = model_and_losses()
    optimizer = MTAdam(model.parameters())
    grads = [torch.randn_like(p) for p in model.parameters()]
    with optimizer.term("a"):
        for p, g in zip(model.parameters(), grads, strict=True):
            p.grad = g
    assert all(p.grad is None for p in model.parameters())
    taken = optimizer._collector.rows(1, list(model.parameters()))[0]
    assert all(a is b for a, b in zip(taken, grads, strict=True))


def test_zero_grad_drops_the_terms(backend: str) -> None:
    model, losses = model_and_losses()
    before = copy_params(model)
    optimizer = MTAdam(model.parameters(), backend=backend)
    optimizer.backward(losses)
    optimizer.zero_grad()
    optimizer.step()
    assert same(copy_params(model), before)


@pytest.mark.parametrize("set_to_none", [False, True])
def test_zero_grad_leaves_none_in_any_case(set_to_none: bool, backend: str) -> None:
    model, losses = model_and_losses()
    optimizer = MTAdam(model.parameters(), keep_combined_grad=True, backend=backend)
    optimizer.backward(losses)
    optimizer.step()
    optimizer.zero_grad(set_to_none)
    assert all(p.grad is None for p in model.parameters())


def test_a_named_term_is_known_by_its_position_too(backend: str) -> None:
    def run(second_step: tuple[str | int, str | int]) -> list[Tensor]:
        model, losses = model_and_losses()
        optimizer = MTAdam(model.parameters(), backend=backend)
        for terms in (tuple(losses), second_step):
            for term, loss in zip(terms, losses.values(), strict=True):
                with optimizer.term(term):
                    torch.autograd.backward(loss, inputs=list(model.parameters())[2:], retain_graph=True)
        optimizer.step()
        assert optimizer.terms == ("fit", "size")
        return copy_params(model)

    expected = run(("fit", "size"))
    assert same(run((0, 1)), expected)
    assert not same(run((1, 0)), expected)


@pytest.mark.parametrize("keep", [False, True])
def test_grad_after_a_step(keep: bool, backend: str) -> None:
    model, losses = model_and_losses()
    params = list(model.parameters())
    grads = [torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True) for loss in losses.values()]
    optimizer = MTAdam(params, keep_combined_grad=keep, backend=backend)
    optimizer.backward(losses)
    optimizer.step()
    if not keep:
        assert all(p.grad is None for p in params)
        return
    scales = list(optimizer.term_scales().values())
    for i, p in enumerate(params):
        torch.testing.assert_close(p.grad, sum(s[i] * g[i] for s, g in zip(scales, grads, strict=True)))
    optimizer.step()  # no step: it leaves what is there
    assert all(p.grad is not None for p in params)
    with optimizer.term("fit"):  # what the last step left is not taken for a gradient of the term
        pass
    assert all(p.grad is None for p in params)


def test_what_combined_gradients_hold(backend: str | Backend) -> None:
    check_combined_gradients(backend)


def test_first_term_seen_is_the_anchor(backend: str) -> None:
    model, losses = model_and_losses()
    optimizer = MTAdam(model.parameters(), backend=backend)
    optimizer.backward(dict(reversed(losses.items())))
    optimizer.step()
    assert optimizer.terms == ("size", "fit")
    assert optimizer.term_scales()["size"].eq(1).all()
    assert not optimizer.term_scales()["fit"].eq(1).any()


def test_norms_and_scales_are_in_the_order_of_the_parameters(backend: str) -> None:
    """Types alternate, so that rows of one table are not neighbors."""
    dtypes = (torch.float64, torch.bfloat16, torch.float64, torch.float32, torch.bfloat16)
    params = [nn.Parameter(torch.ones(4).to(dtype)) for dtype in dtypes]
    optimizer = MTAdam(params, backend=backend)
    for term in (0, 1):
        with optimizer.term(term):
            for i, p in enumerate(params):
                p.grad = torch.full_like(p, (i + 1) ** (term + 1)) if i != 3 or term == 0 else None
    optimizer.step()
    nan = float("nan")
    expected = {"norms": torch.tensor([2.0, 8.0, 18.0, nan, 50.0]), "scales": 1 / torch.tensor([1, 2, 3, nan, 5])}
    found = {"norms": optimizer.running_norms()[1].float(), "scales": optimizer.term_scales()[1].float()}
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert optimizer.running_norms()[0].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_absent_term_keeps_its_state(backend: str) -> None:
    model, _ = model_and_losses()
    optimizer = MTAdam(model.parameters(), backend=backend, amsgrad=True)
    for names in (("a", "b"), ("a",), ("a", "b", "c"), ("c",)):
        previous = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
        out = model(torch.randn(16, 4, dtype=torch.float64))
        losses = {"a": out[:, 0].exp().sum(), "b": out[:, 1].square().sum(), "c": out.exp().sum()}
        optimizer.zero_grad()
        optimizer.backward({name: losses[name] for name in names})
        optimizer.step()
        for k, name in enumerate(optimizer.terms):
            for p, old in previous.items():
                new = optimizer.state[p]
                for key in (f"exp_avg_sq{k}", f"max_exp_avg_sq{k}"):
                    if key in old:
                        assert torch.equal(old[key], new[key]) == (name not in names)
                if len(old["norm_avg"]) > k:
                    assert torch.equal(old["norm_avg"][k], new["norm_avg"][k]) == (name not in names)
    assert optimizer.terms == ("a", "b", "c")


def test_parameter_that_no_term_reaches_is_left_alone(backend: str) -> None:
    reached, unreached = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = MTAdam([unreached, reached], weight_decay=0.1, backend=backend)
    for _ in range(3):
        optimizer.backward([reached.square().sum()])
        optimizer.step()
    assert unreached.eq(1).all()
    assert unreached not in optimizer.state
    assert reached.ne(1).all()
    assert optimizer.running_norms()[0].isnan().tolist() == [True, False]


def test_a_bad_gradient_does_not_spoil_the_norms(backend: str) -> None:
    p = nn.Parameter(torch.ones(4))
    optimizer = MTAdam([p], backend=backend)
    for bad in (False, True, False):
        for k in range(2):
            with optimizer.term(k):
                p.grad = torch.full((4,), float(k + 1))
                if bad:
                    p.grad[0] = torch.inf
        optimizer.step()
    assert optimizer.running_norms()[1].item() == pytest.approx(4.0)
    assert p[1:].isfinite().all()
    assert not p[0].isfinite()


def test_groups_override_everything_and_schedulers_work(backend: str) -> None:
    a, b = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.ones(3).double())
    second = {"params": [b], "lr": torch.tensor(0.5), "betas": (0.0, 0.0, 0.0), "term_weights": {"x": 2.0, "y": 3.0}}
    optimizer = MTAdam([{"params": [a]}, second], lr=0.25, backend=backend)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for lr in (0.25, 0.125):
        before = a.detach().clone()
        optimizer.backward({"x": (a + b).sum(), "y": (a + b).sum()})
        optimizer.step()
        scheduler.step()
        # two identical terms take twice the step of one: the published rule
        torch.testing.assert_close(a.detach(), before - 2 * lr)
    assert optimizer.term_scales()["x"].tolist() == [1.0, 2.0]
    assert optimizer.term_scales()["y"].tolist() == [1.0, 3.0]


def test_learning_rate_in_a_tensor_of_any_shape(backend: str) -> None:
    p = nn.Parameter(torch.tensor(1.0))
    optimizer = MTAdam([p], lr=torch.tensor([[0.25]]), backend=backend)
    optimizer.backward([3 * p])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor(0.75))


@pytest.mark.parametrize("make", [MTAdam, BalancedAdam, partial(CombinedAdam, rule=FixedWeights())])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_float32_learning_rate_leaves_float64_exact(
    shape: tuple[int, ...], make: Callable[..., MTAdam | CombinedAdam], backend: str
) -> None:
    p = nn.Parameter(torch.full(shape, 3.0, dtype=torch.float64))
    options = {"lr": torch.tensor(0.1), "eps": 1e-30, "weight_decay": 0.3, "decoupled_weight_decay": True}
    optimizer = make([p], backend=backend, **options)
    with optimizer.term(0):
        p.grad = torch.full_like(p, 5.0)
    optimizer.step()
    nearest = float(torch.tensor(0.1))
    for lr, is_it in ((nearest, True), (0.1, False)):
        expected = torch.full_like(p, 3.0 * (1 - lr * 0.3) - lr)  # Adam's first step has the length lr
        assert torch.allclose(p.detach(), expected, rtol=1e-12, atol=0.0) == is_it


@pytest.mark.parametrize(
    ("make", "betas"), [(MTAdam, (0.5, 0.75, 0.25)), (partial(CombinedAdam, rule=FixedWeights()), (0.5, 0.75))]
)
def test_betas_in_tensors_are_numbers(
    make: Callable[..., MTAdam | CombinedAdam], betas: tuple[float, ...], backend: str
) -> None:
    """Also when they change in place."""

    def run(betas: tuple[float | Tensor, ...], later: float | None) -> Tensor:
        p = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = make([p], lr=0.1, betas=betas, backend=backend)
        for step in range(4):
            if step == 2 and later is not None:
                (group,) = optimizer.param_groups
                if isinstance(betas[0], Tensor):
                    betas[0].fill_(later)
                else:
                    group["betas"] = (later, *betas[1:])
            optimizer.backward([p.square().sum(), p.cos().sum()])
            optimizer.step()
        return p.detach()

    def in_tensors() -> tuple[Tensor, ...]:
        return tuple(torch.tensor(beta) for beta in betas)

    assert torch.equal(run(in_tensors(), None), run(betas, None))
    assert torch.equal(run(in_tensors(), 0.125), run(betas, 0.125))
    assert not torch.equal(run(betas, 0.125), run(betas, None))


def test_param_group_added_between_backward_and_step(backend: str) -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MTAdam([a], backend=backend)
    optimizer.backward({"x": a.sum()})
    optimizer.add_param_group({"params": [b], "lr": 0.1})
    optimizer.backward({"x": (a + b).sum()})
    optimizer.step()
    torch.testing.assert_close(b.detach(), torch.full((2,), 0.9))
    assert optimizer.running_norms()["x"][0].item() == pytest.approx(2 * 2**0.5)


def test_amsgrad_can_be_turned_on_and_off(backend: str) -> None:
    def run(*amsgrad: bool) -> Tensor:
        p = nn.Parameter(torch.ones(3))
        optimizer = MTAdam([p], lr=0.1, betas=(0.9, 0.5, 0.9), backend=backend)
        for t, on in enumerate(amsgrad):
            optimizer.param_groups[0]["amsgrad"] = on
            optimizer.backward([(10 - 4 * t) * p.sum()])
            optimizer.step()
        return p.detach()

    assert torch.equal(run(True, False), run(False, False))  # the maxima that were kept do not bound the step
    assert not torch.equal(run(True, True), run(False, False))
    assert not torch.equal(run(False, True), run(True, True))  # none was kept before


def test_closure(backend: str) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = MTAdam([p], backend=backend)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        optimizer.backward([loss])
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert p.ne(1).all()


def test_parameters_may_move_to_other_memory(backend: str) -> None:
    def run(move: bool) -> Tensor:
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(2, 3, 4, 5))
        optimizer = MTAdam([p], backend=backend)
        for _ in range(3):
            optimizer.backward([p.square().sum(), (p * p * p).sum()])  # torch.exp may differ from call to call
            optimizer.step()
            if move:
                p.data = p.data.to(memory_format=torch.channels_last)
        return p.detach()

    assert torch.equal(run(True), run(False))


def test_autograd_sees_that_the_parameters_changed(backend: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p], backend=backend)
    stale = p.square().sum()
    optimizer.backward([p.sum()])
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


def test_autograd_sees_no_change_where_there_is_none(backend: str) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p, q], backend=backend)
    optimizer.backward([p.sum() + q.sum()])
    optimizer.step()
    waiting = q.square().sum()
    optimizer.backward([p.sum()])
    optimizer.step()
    waiting.backward()  # q has not changed, so its graph is still good


def test_wide_gradients_of_narrow_parameters(backend: str | Backend) -> None:
    check_wide_gradients(backend)


def test_a_tensor_of_the_state_that_was_exchanged_is_used(backend: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p], lr=0.1, betas=(0.9, 0.0, 0.0), backend=backend)
    for exp_avg in (torch.zeros(3), torch.full((3,), 5.0)):
        with optimizer.term(0):
            p.grad = torch.ones(3)
        optimizer.step()
        optimizer.state[p]["exp_avg"] = exp_avg
    with optimizer.term(0):
        p.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.full((3,), 0.9 * 5.0 + 0.1))


def test_a_parameter_on_a_device_that_is_new_gets_a_backend() -> None:
    optimizer = MTAdam([nn.Parameter(torch.ones(3))])
    q = nn.Parameter(torch.ones(3, device="meta"))
    optimizer.add_param_group({"params": [q]})
    with optimizer.term(0):
        q.grad = torch.ones_like(q)
    with pytest.warns(UserWarning, match="reference on meta"):
        optimizer.step()
    assert "meta: reference" in repr(optimizer)
