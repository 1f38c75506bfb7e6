"""CombinedAdam: its kernels against float64 formulas and torch.optim.Adam, its rules at work, its state."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.rules import MGDA, PCD, FixedWeights, GradientNormalization, GradNorm, PCGrad, Rule
from oracles.tolerances import TooFar, check_values
from tests.support.cases import DTYPES, Case, CombinedCase, fewer
from tests.support.stages import check_products_beyond_float32
from tests.support.strategies import cases

ONE: dict[str, Any] = {"layouts": ("contiguous",), "grad_layouts": ("contiguous",), "seed": 1}
RULES: dict[str, Callable[[], Rule]] = {
    "fixed": lambda: FixedWeights([1.0, 2.0]),
    "gradient normalization": lambda: GradientNormalization(alpha=0.5),
    "GradNorm": lambda: GradNorm(lr=1e-3),
    "PCGrad": lambda: PCGrad(seed=3),
    "MGDA": lambda: MGDA("loss+"),
    "PCD": lambda: PCD(tau=1.0, beta=0.5),
}


class Spy(Rule):
    """Weights all one; keeps what it is given."""

    needs_losses = True

    def __init__(self, parameters: list[nn.Parameter] | None = None) -> None:
        self.parameters = parameters

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.gram, self.losses = gram.clone(), losses
        return torch.ones_like(losses)


class ByNorm(Rule):
    """Divide by the norms, and spoil the dot products."""

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        norms = gram.diagonal().sqrt()
        gram /= norms * norms[:, None]
        return 1 / norms


def test_a_rule_may_write_to_the_dot_products(backend: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = CombinedAdam([p], ByNorm(), backend=backend, keep_combined_grad=True)
    optimizer.backward({"a": 5 * p.sum(), "b": p.square().sum()})
    expected = 2 * 3**0.5 * p.detach() / 3  # two gradients along (1, 1, 1), each divided by its norm
    torch.testing.assert_close(float(optimizer.clip_grad_norm_(0.1)), float(expected.norm()), rtol=1e-6, atol=0)
    optimizer.step()
    assert p.grad is not None
    torch.testing.assert_close(float(p.grad.norm()), 0.1, rtol=1e-4, atol=0)


def test_a_rule_looks_at_all_parameters_where_none_is_shared(backend: str) -> None:
    p, q = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))
    spy = Spy()
    optimizer = CombinedAdam([p, q], spy, backend=backend)
    for both in (False, True):
        terms = {"a": (p * torch.tensor([1.0, -1.0])).sum() + q.sum(), "b": p.sum() * 2, "c": q.sum() * 5}
        if both:
            del terms["c"]  # then all reach p
        optimizer.backward(terms)
        optimizer.step()
        everywhere = [[3.0, 0.0, 5.0], [0.0, 8.0, 0.0], [5.0, 0.0, 25.0]]
        shared = [[2.0, 0.0, 0.0], [0.0, 8.0, 0.0], [0.0, 0.0, 0.0]]
        assert spy.gram.tolist() == (shared if both else everywhere)


# -- combined_adam -----------------------------------------------------------------------------------------------------


def test_any_case(backend: str) -> None:
    @settings(max_examples=fewer(80, backend), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(case=cases())
    def run(case: Case) -> None:
        CombinedCase.like(case).run(backend)

    run()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", CombinedCase.FAULTS)
def test_faults_are_rejected(dtype: torch.dtype, fault: str, backend: str) -> None:
    case = CombinedCase.showing(fault, dtype)
    case.run(backend)
    with pytest.raises(TooFar):
        case.run(backend, fault=fault)


ADAM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.1},
    {"weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3},
    {"weight_decay": 0.1, "decoupled_weight_decay": True},
]


@pytest.mark.parametrize("options", ADAM_OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_weights_are_adam_on_the_sum(dtype: torch.dtype, options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(n, dtype=dtype)) for n in (5, 4097)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]

    def losses(of: list[nn.Parameter]) -> list[Tensor]:
        return [of[0].square().sum(), of[1].cos().sum(), (of[0].sum() * of[1]).sum()]

    combined = CombinedAdam(ours, FixedWeights(), lr=0.01, backend=backend, **options)
    theirs_options = dict(options)  # Adam takes decoupled_weight_decay from torch 2.7 on
    kind = torch.optim.AdamW if theirs_options.pop("decoupled_weight_decay", False) else torch.optim.Adam
    adam = kind(theirs, lr=0.01, **theirs_options)
    for _ in range(10):
        combined.backward(losses(ours))
        combined.step()
        adam.zero_grad()
        torch.stack(losses(theirs)).sum().backward()
        adam.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_keep_combined_grad_is_the_weighted_sum(backend: str) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = CombinedAdam(
        [p, q], FixedWeights([2.0, 3.0]), weight_decay=0.1, maximize=True, keep_combined_grad=True, backend=backend
    )
    optimizer.backward([p.sum(), (5 * p).sum() + q.sum()])
    optimizer.step()
    assert p.grad is not None
    assert q.grad is not None
    assert p.grad.tolist() == [17.0] * 3  # the gradient of the weighted loss: without decay, the sign not turned
    assert q.grad.tolist() == [3.0] * 2


# -- rules at work -----------------------------------------------------------------------------------------------------


def shared_model(dtype: torch.dtype = torch.float32) -> tuple[list[nn.Parameter], Callable[[], dict[str, Tensor]]]:
    """Return a shared parameter and one of each of two terms, and their losses."""
    torch.manual_seed(0)
    shared, one, other = (nn.Parameter(torch.randn(4, 4, dtype=dtype)) for _ in range(3))
    x = torch.randn(8, 4, dtype=dtype)

    def losses() -> dict[str, Tensor]:
        return {"one": (x @ shared @ one).square().mean(), "other": (x @ shared @ other + 1).abs().mean()}

    return [shared, one, other], losses


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains(rule: str, backend: str) -> None:
    params, losses = shared_model()
    optimizer = CombinedAdam(params, RULES[rule](), lr=0.03, backend=backend)
    before = {name: loss.item() for name, loss in losses().items()}
    for _ in range(60):
        optimizer.backward(losses())
        optimizer.step()
    assert all(loss.item() < 0.3 * before[name] for name, loss in losses().items())
    assert list(optimizer.last_weights()) == ["one", "other"]


def test_a_rule_sees_the_shared_parameters_and_the_losses(backend: str) -> None:
    params, losses = shared_model(torch.float64)
    spy = Spy()
    optimizer = CombinedAdam(params, spy, backend=backend)
    values = losses()
    gradients = [torch.autograd.grad(loss, params[0], retain_graph=True)[0].flatten() for loss in values.values()]
    optimizer.backward(values)
    optimizer.step()
    expected = [[float(g @ h) for h in gradients] for g in gradients]
    check_values(spy.gram, np.array(expected), 1e-12)
    assert spy.losses.tolist() == [loss.item() for loss in values.values()]


def test_a_rule_sees_the_parameters_that_it_names(backend: str) -> None:
    params, losses = shared_model(torch.float64)
    spy = Spy(params[1:2])
    optimizer = CombinedAdam(params, spy, backend=backend)
    values = losses()
    (gradient,) = torch.autograd.grad(values["one"], params[1], retain_graph=True)
    optimizer.backward(values)
    optimizer.step()
    check_values(spy.gram, np.array([[float(gradient.square().sum()), 0.0], [0.0, 0.0]]), 1e-12)


def test_accumulated_losses_add_up_and_absent_ones_are_nan(backend: str) -> None:
    params, losses = shared_model(torch.float64)
    spy = Spy()
    optimizer = CombinedAdam(params, spy, backend=backend)
    optimizer.backward(losses())
    optimizer.backward(losses())
    expected = [2 * loss.item() for loss in losses().values()]
    optimizer.step()
    assert spy.losses.tolist() == expected
    one = losses()["one"]
    with optimizer.term("one", one):
        one.backward()
    optimizer.step()
    assert spy.losses[0].item() == one.item()
    assert spy.losses[1].isnan()
    assert spy.gram[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dot_products_beyond_float32(dtype: torch.dtype, backend: str) -> None:
    check_products_beyond_float32(backend, dtype)


class LoudestOnly(Rule):
    """A rule as a user might write it, with state."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.steps += 1
        return torch.nn.functional.one_hot(gram.diagonal().argmax(), len(gram)).double()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Any) -> None:
        self.steps = state["steps"]


def test_a_rule_of_the_users_own(backend: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = CombinedAdam([p], LoudestOnly(), lr=0.5, backend=backend)
    optimizer.backward({"quiet": p.sum(), "loud": -2 * p.sum()})
    optimizer.step()
    assert {k: w.item() for k, w in optimizer.last_weights().items()} == {"quiet": 0.0, "loud": 1.0}
    torch.testing.assert_close(p.detach(), torch.full((3,), 1.5))
    again = CombinedAdam([p], LoudestOnly(), backend=backend)
    again.load_state_dict(optimizer.state_dict())
    assert isinstance(again.rule, LoudestOnly)
    assert again.rule.steps == 1


# -- state -------------------------------------------------------------------------------------------------------------


def go_on(optimizer: CombinedAdam, losses: Callable[[], dict[str, Tensor]], steps: int) -> None:
    for _ in range(steps):
        optimizer.backward(losses())
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_a_loaded_run_goes_on_bit_for_bit(rule: str, backend: str) -> None:
    params, losses = shared_model()
    optimizer = CombinedAdam(params, RULES[rule](), lr=0.03, amsgrad=True, backend=backend)
    go_on(optimizer, losses, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    values = [p.detach().clone() for p in params]
    go_on(optimizer, losses, 5)
    expected = [p.detach().clone() for p in params]
    for p, value in zip(params, values, strict=True):
        p.data.copy_(value)
    second = CombinedAdam(params, RULES[rule](), backend=backend)
    second.load_state_dict(saved)
    assert second.param_groups[0]["rule"] is second.rule
    go_on(second, losses, 5)
    assert all(torch.equal(p, q) for p, q in zip(params, expected, strict=True))


def test_flattened_checkpoints_hold_the_rules_state() -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)

    def make() -> tuple[nn.Linear, CombinedAdam]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = CombinedAdam(model.parameters(), GradNorm())
        optimizer.backward({"a": model(torch.ones(3)).square().sum(), "b": 5 * model.weight.abs().sum()})
        optimizer.step()
        return model, optimizer

    model, optimizer = make()
    optimizer.backward({"a": 2 * model(torch.ones(3)).square().sum(), "b": model.weight.abs().sum()})
    optimizer.step()
    other_model, other = make()
    expected = optimizer.rule.state_dict()["weights"]
    assert not torch.equal(other.rule.state_dict()["weights"], expected)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    set_optimizer_state_dict(other_model, other, saved, options=options)
    assert torch.equal(other.rule.state_dict()["weights"], expected)


@pytest.mark.parametrize("rule", ["GradNorm", "PCGrad", "PCD"])
def test_the_rules_state_matters(rule: str, backend: str) -> None:
    """Negative control of the test above."""
    params, losses = shared_model()
    optimizer = CombinedAdam(params, RULES[rule](), lr=0.03, backend=backend)
    go_on(optimizer, losses, 5)
    state = optimizer.state_dict()["param_groups"][0]["rule"]
    fresh = RULES[rule]().state_dict()
    assert state.keys() == fresh.keys()
    assert any(not torch.equal(torch.as_tensor(state[name]), torch.as_tensor(fresh[name])) for name in state)


def step_on_random_gradients(optimizer: CombinedAdam, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name in ("one", "other"):
        with optimizer.term(name, torch.rand((), generator=generator)):
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on(copied: Callable[[CombinedAdam], CombinedAdam], backend: str) -> None:
    params, losses = shared_model()
    optimizer = CombinedAdam(params, GradNorm(parameters=params[:1]), keep_combined_grad=True, backend=backend)
    go_on(optimizer, losses, 3)
    second = copied(optimizer)
    assert second.last_weights() == optimizer.last_weights()
    assert second.rule.parameters is not None
    assert second.rule.parameters[0] is second.param_groups[0]["params"][0]
    assert second.rule.state_dict().keys() == optimizer.rule.state_dict().keys()
    torch.testing.assert_close(second.rule.state_dict(), optimizer.rule.state_dict(), rtol=0, atol=0)
    for seed in range(3):
        step_on_random_gradients(optimizer, seed)
        step_on_random_gradients(second, seed)
    for p, q in zip(params, second.param_groups[0]["params"], strict=True):
        torch.testing.assert_close((q.detach(), q.grad), (p.detach(), p.grad), rtol=0, atol=0)
    assert second.last_weights() == optimizer.last_weights()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_it_reads_torchs_adam(kind: type[torch.optim.Adam], backend: str) -> None:
    p, q = (nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64)) for _ in range(2))
    adam = kind([p], lr=0.03, weight_decay=0.1)

    def step_adam() -> None:
        adam.zero_grad()
        (p.square().sum() + p.cos().sum()).backward()
        adam.step()

    for _ in range(4):
        step_adam()
    q.data.copy_(p.data)
    decoupled = kind is torch.optim.AdamW
    untold = "decoupled_weight_decay" not in adam.param_groups[0]  # before torch 2.7
    ours = CombinedAdam([q], FixedWeights(), decoupled_weight_decay=decoupled and untold, backend=backend)
    ours.load_state_dict(adam.state_dict())
    assert ours.param_groups[0]["decoupled_weight_decay"] == decoupled
    for _ in range(4):
        step_adam()
        ours.backward([q.square().sum(), q.cos().sum()])
        ours.step()
    torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_state_is_adams(backend: str) -> None:
    params, losses = shared_model(torch.bfloat16)
    optimizer = CombinedAdam(params, PCGrad(), backend=backend)
    go_on(optimizer, losses, 1)
    for p in params:
        state = optimizer.state[p]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: CombinedAdam([p], "pcgrad"), TypeError, r"rule is 'pcgrad'; it must be .* such as PCGrad\(\)"),  # type: ignore[arg-type]
        (lambda p: CombinedAdam([p], PCGrad), TypeError, "rule is <class"),  # type: ignore[arg-type]
        (lambda p: CombinedAdam([p], PCGrad(), betas=(0.9, 0.9, 0.9)), ValueError, "betas is .* 2 numbers"),  # type: ignore[arg-type]
        (lambda p: CombinedAdam([p], GradNorm(parameters=[nn.Parameter(p)])), ValueError, r"rule's parameters\[0\]"),
        (lambda p: GradNorm(parameters=[]), ValueError, "parameters is empty"),
        (lambda p: GradNorm(alpha=-1.0), ValueError, "alpha is -1.0"),
        (lambda p: GradNorm(lr=float("nan")), ValueError, "lr is nan"),
        (lambda p: GradientNormalization(alpha=float("inf")), ValueError, "alpha is inf"),
        (lambda p: PCGrad(seed=-1), ValueError, "seed is -1; it must be a whole number of at least 0"),
        (lambda p: PCGrad(seed=1.5), ValueError, "seed is 1.5"),  # type: ignore[arg-type]
        (lambda p: PCGrad(seed="a"), ValueError, "seed is 'a'"),  # type: ignore[arg-type]
        (lambda p: CombinedAdam([{"param": [nn.Parameter(p)]}], PCGrad()), TypeError, "has no 'params'"),
        (lambda p: CombinedAdam([{"params": {nn.Parameter(p)}}], PCGrad()), TypeError, "no order"),
        (lambda p: PCGrad("median"), ValueError, "reduction is 'median'; it must be one of sum, mean"),
        (lambda p: MGDA("l3"), ValueError, "normalization is 'l3'; it must be one of none, l2, loss, loss+"),
        (lambda p: FixedWeights([1.0, float("nan")]), ValueError, r"weights\[1\] is nan"),
    ],
)
def test_bad_arguments(make: Callable[[Tensor], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(torch.ones(2))


def test_gradnorm_takes_a_single_parameter() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    assert GradNorm(parameters=p).parameters == [p]


def test_errors_change_nothing(backend: str) -> None:
    class OneWeight(Rule):
        def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
            return gram.new_ones(1)

    class Listing(Rule):
        def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
            return [1.0, 2.0]  # type: ignore[return-value]

    p = nn.Parameter(torch.ones(3))
    for rule, error, message in (
        (
            OneWeight(),
            ValueError,
            r"gave weights of shape \(1,\); it must give a tensor with one for each of the 2 terms",
        ),
        (Listing(), ValueError, r"gave weights \[1.0, 2.0\]; it must give a tensor"),
        (GradNorm(), RuntimeError, "needs the loss of term 'b'; pass it, as in"),
        (FixedWeights([1.0, 2.0, 3.0]), ValueError, "weights has 3 weights for 2 terms"),
    ):
        optimizer = CombinedAdam([p], rule, backend=backend)
        with optimizer.term("a", p.sum()):
            p.sum().backward()
        with optimizer.term("b"):
            p.sum().backward()
        with pytest.raises(error, match=message):
            optimizer.step()
        assert p.tolist() == [1.0] * 3
        assert optimizer._collector
    optimizer = CombinedAdam([p], FixedWeights({"a": 1.0}), backend=backend)
    with pytest.raises(ValueError, match=r"unknown term 'b': weights names \['a'\]"):
        optimizer.backward({"a": p.sum(), "b": p.sum()})
    with pytest.raises(ValueError, match="loss 'a' has shape"), optimizer.term("a", torch.ones(2)):
        pass


def test_other_states_are_refused(backend: str) -> None:
    params, losses = shared_model()
    gradnorm = CombinedAdam(params, GradNorm(), backend=backend)
    go_on(gradnorm, losses, 1)
    with pytest.raises(ValueError, match=r"rule has \['weights', 'initial_losses'\], that of PCGrad"):
        CombinedAdam(params, PCGrad(), backend=backend).load_state_dict(gradnorm.state_dict())
    mtadam = MTAdam(params, backend=backend)
    with pytest.raises(ValueError, match="has exp_avg_sq, of an optimizer with a second moment for all terms"):
        mtadam.load_state_dict(gradnorm.state_dict())
    mtadam.backward(losses())
    mtadam.step()
    with pytest.raises(ValueError, match="has exp_avg_sq0, of an optimizer with a second moment per term"):
        gradnorm.load_state_dict(mtadam.state_dict())


def test_combined_gradients_of_a_rule_that_has_looked_at_dot_products(backend: str) -> None:
    p = nn.Parameter(torch.ones(35))
    optimizer = CombinedAdam([p], GradientNormalization(), keep_combined_grad=True, backend=backend)
    for _ in range(2):
        optimizer.backward({"a": 3 * p.sum()})
        optimizer.step()
        torch.testing.assert_close(p.grad, torch.full((35,), 35**-0.5))
