"""clip_grad_norm_: MTAdam clips each term's gradient, CombinedAdam the combined one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.backends.reference import ReferenceBackend
from mtadam_fused.rules import FixedWeights, GradientNormalization, GradNorm, PCGrad, Rule, UPGrad
from oracles.tolerances import TooFar, check_values, same

RULES: dict[str, Callable[[], Rule]] = {
    "one pass": lambda: FixedWeights([2.0, -0.5, 1.0]),
    "FixedWeights": lambda: FixedWeights([2.0, -0.5, 1.0]),
    "PCGrad": lambda: PCGrad(seed=0),
    "UPGrad": UPGrad,
    "GradientNormalization": GradientNormalization,
    "GradNorm": GradNorm,
}


def make_params(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = [(3,), (4, 5), (2, 3, 2, 2)]
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    return [*params[:2], nn.Parameter(params[2].detach().to(memory_format=torch.channels_last))]


def losses_of(params: list[nn.Parameter], t: int) -> dict[str, Tensor]:
    """Return three losses; the second misses a parameter, the third comes and goes."""
    p, q, r = params
    losses = {
        "a": 0.1 * (p.square().sum() + q.sin().sum() + r.sum() * t),
        "b": 100 * (q.square().sum() + r.cos().sum()),
    }
    return losses if t % 2 else losses | {"c": (p.sum() - 3) * q.sum() + 0.01 * r.square().sum()}


def gradients(params: list[nn.Parameter], t: int) -> dict[str, list[np.ndarray]]:
    """Return the terms' gradients, zeros where a term does not reach the parameter."""
    grads = {
        name: torch.autograd.grad(loss, params, allow_unused=True, retain_graph=True)
        for name, loss in losses_of(params, t).items()
    }
    return {
        name: [np.zeros(p.shape) if g is None else g.double().numpy() for p, g in zip(params, of, strict=True)]
        for name, of in grads.items()
    }


def norm(grads: list[np.ndarray]) -> float:
    return float(np.sqrt(sum((g**2).sum() for g in grads)))


def scaled(losses: dict[str, Tensor], factors: dict[str, float]) -> dict[str, Tensor]:
    return {name: factors[name] * loss for name, loss in losses.items()}


@pytest.mark.parametrize("kind", [MTAdam, BalancedAdam])
def test_each_term_is_clipped(kind: type[MTAdam], backend: str) -> None:
    """As if each loss were multiplied by what its gradient is clipped by."""
    params, others = make_params(), make_params()
    optimizer, other = (kind(of, lr=0.1, backend=backend) for of in (params, others))
    all_norms: list[float] = []
    for t in range(4):
        norms = {name: norm(of) for name, of in gradients(others, t).items()}
        all_norms += norms.values()
        optimizer.backward(losses_of(params, t))
        found = optimizer.clip_grad_norm_(5.0)
        optimizer.step()
        assert list(found) == list(optimizer.terms)
        for name, value in found.items():
            check_values(value, np.array(norms.get(str(name), 0.0)), 1e-12)
        other.backward(scaled(losses_of(others, t), {name: min(1, 5 / (n + 1e-6)) for name, n in norms.items()}))
        other.step()
        for p, q in zip(params, others, strict=True):
            check_values(p, q.detach().numpy(), 1e-11)
    assert min(all_norms) < 5 < max(all_norms)


def test_without_clipping_the_steps_differ(backend: str) -> None:
    params, others = make_params(), make_params()
    optimizer, other = (MTAdam(of, lr=0.1, backend=backend) for of in (params, others))
    for t in range(4):
        for each, of, max_norm in ((optimizer, params, 5.0), (other, others, 1e9)):
            each.backward(losses_of(of, t))
            each.clip_grad_norm_(max_norm)
            each.step()
    with pytest.raises(TooFar):
        check_values(params[0], others[0].detach().numpy(), 1e-3)


def make_combined(name: str, params: list[nn.Parameter], **options: Any) -> CombinedAdam:
    passes = "auto" if name == "one pass" else "per_term"
    return CombinedAdam(params, RULES[name](), lr=0.1, terms=("a", "b", "c"), passes=passes, **options)


@pytest.mark.parametrize("name", RULES)
def test_the_combined_gradient_is_clipped(name: str, backend: str) -> None:
    """The oracle is torch.optim.Adam on the weighted sum, clipped by torch.nn.utils.clip_grad_norm_."""
    params, others = make_params(), make_params()
    optimizer = make_combined(name, params, backend=backend)
    adam = torch.optim.Adam(others, lr=0.1)
    for t in range(4):
        grads = gradients(others, t)
        optimizer.backward(losses_of(params, t))
        found = optimizer.clip_grad_norm_(5.0)
        optimizer.step()
        weights = {term: weight.item() for term, weight in optimizer.last_weights().items()}
        for i, q in enumerate(others):
            q.grad = torch.as_tensor(sum(weights[term] * of[i] for term, of in grads.items())).to(q)
        expected = torch.nn.utils.clip_grad_norm_(others, 5.0)
        adam.step()
        check_values(found, expected.numpy(), 1e-11)
        for p, q in zip(params, others, strict=True):
            check_values(p, q.detach().numpy(), 1e-11)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_asked_once(name: str, backend: str) -> None:
    """With a large norm clipping changes nothing, not the state of the rule either."""
    params, others = make_params(), make_params()
    optimizer, other = (make_combined(name, of, backend=backend) for of in (params, others))
    for t in range(4):
        for each, of in ((optimizer, params), (other, others)):
            each.backward(losses_of(of, t))
            if each is optimizer:
                each.clip_grad_norm_(1e9)
            each.step()
    assert same(params, others)


def test_clipping_twice_uses_the_smaller_norm(backend: str) -> None:
    def run(*max_norms: float) -> list[Tensor]:
        found = []
        for make in (MTAdam, lambda params, **options: make_combined("UPGrad", params, backend=backend)):
            params = make_params()
            optimizer: Any = make(params, backend=backend)
            for t in range(3):
                optimizer.backward(losses_of(params, t))
                for max_norm in max_norms:
                    optimizer.clip_grad_norm_(max_norm)
                optimizer.step()
            found += [p.detach() for p in params]
        return found

    for clipped_twice, clipped in zip(run(6.0, 3.0), run(3.0), strict=True):
        check_values(clipped_twice, clipped.numpy(), 1e-6)


def test_kept_combined_gradients_are_clipped(backend: str) -> None:
    params = make_params()
    optimizer = make_combined("UPGrad", params, backend=backend, keep_combined_grad=True)
    optimizer.backward(losses_of(params, 0))
    assert optimizer.clip_grad_norm_(0.5) > 1
    optimizer.step()
    left = [p.grad.double().numpy() for p in params if p.grad is not None]
    check_values(torch.tensor(norm(left)), np.array(0.5), 1e-5)


def test_gradients_cannot_be_added_after_the_rule_was_asked(backend: str) -> None:
    params = make_params()
    optimizer = make_combined("PCGrad", params, backend=backend)
    optimizer.backward(losses_of(params, 0))
    optimizer.clip_grad_norm_(1.0)
    message = "clip_grad_norm_\\(\\) has clipped the gradients as PCGrad.* call it after the last backward"
    with pytest.raises(RuntimeError, match=message), optimizer.term("a"):
        pass
    with pytest.raises(RuntimeError, match=message):
        optimizer.backward(losses_of(params, 0))
    optimizer.zero_grad()
    optimizer.backward(losses_of(params, 0))
    optimizer.step()


@pytest.mark.parametrize("make", [MTAdam, lambda params: CombinedAdam(params, UPGrad())])
def test_an_infinite_norm_measures_only(make: Callable[..., Any]) -> None:
    steps = []
    for max_norm in (None, float("inf"), 1e-3):
        params = make_params()
        optimizer = make(params)
        for number in range(2):  # the first step of Adam does not depend on the gradient's size
            optimizer.backward({term: (1 + number) * loss for term, loss in losses_of(params, number).items()})
            if max_norm is not None:
                optimizer.clip_grad_norm_(max_norm if number else float("inf"))
            optimizer.step()
        steps.append([p.detach() for p in params])
    assert same(steps[0], steps[1])
    assert not same(steps[0], steps[2])


@pytest.mark.parametrize("make", [MTAdam, lambda params: CombinedAdam(params, UPGrad())])
def test_bad_arguments_and_norms(make: Callable[..., Any]) -> None:
    params = make_params()
    optimizer = make(params)
    before = [p.detach().clone() for p in params]
    nothing = optimizer.clip_grad_norm_(1.0)
    assert nothing == {} or nothing == 0
    optimizer.backward(losses_of(params, 0))
    for max_norm in (-1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="max_norm is"):
            optimizer.clip_grad_norm_(max_norm)
    optimizer.zero_grad()
    with optimizer.term("a"):
        params[0].grad = torch.full_like(params[0], float("inf"))
    with pytest.raises(RuntimeError, match=r"the norm of the .* cannot be clipped; call zero_grad"):
        optimizer.clip_grad_norm_(1.0, error_if_nonfinite=True)
    optimizer.zero_grad()
    assert same(params, before)


@pytest.mark.parametrize("make", [MTAdam, lambda params, **o: CombinedAdam(params, UPGrad(), **o)])
def test_scaled_gradients_are_clipped_after_they_are_unscaled(make: Callable[..., Any], backend: str) -> None:
    params, others = make_params(torch.float32), make_params(torch.float32)
    optimizer, other = (make(of, lr=0.1, backend=backend) for of in (params, others))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for t in range(3):
        optimizer.zero_grad()
        optimizer.backward({name: scaler.scale(loss) for name, loss in losses_of(params, t).items()})
        scaler.unscale_(optimizer.scaled)
        optimizer.clip_grad_norm_(5.0)
        scaler.step(optimizer.scaled)
        scaler.update()
        other.backward(losses_of(others, t))
        other.clip_grad_norm_(5.0)
        other.step()
    assert same(params, others)  # the scale is a power of two


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradients(dtype: torch.dtype, backend: str) -> None:
    params = [nn.Parameter(torch.zeros(1000, dtype=dtype))]
    optimizer = MTAdam(params, backend=backend)
    with optimizer.term("a"):
        params[0].grad = torch.full((1000,), 3.0, dtype=dtype)
    found = optimizer.clip_grad_norm_(1.0)["a"]
    check_values(found, np.array(3 * 1000**0.5), 1e-6)
    optimizer.step()
    check_values(optimizer.running_norms()["a"], np.array([1.0]), 1e-2)  # the first: the clipped norm


@pytest.mark.parametrize("make", [MTAdam, lambda params: CombinedAdam(params, UPGrad())])
def test_torchs_default_device_does_not_matter(make: Callable[..., Any]) -> None:
    def run(params: list[nn.Parameter]) -> list[Tensor]:
        optimizer = make(params)
        optimizer.clip_grad_norm_(1.0)
        for t in range(2):
            optimizer.backward(losses_of(params, t))
            optimizer.clip_grad_norm_(1.0)
            optimizer.step()
            saved = optimizer.state_dict()
            for state in saved["state"].values():
                state.pop("norm_avg", None)
            optimizer.load_state_dict(saved)
        return [p.detach() for p in params]

    expected, params = run(make_params()), make_params()
    with torch.device("meta"):
        found = run(params)
    assert same(found, expected)


@pytest.mark.parametrize("name", ["one pass", "PCGrad", "GradNorm"])
def test_gradients_are_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping and the rule use the same dot products, and the step needs none."""
    calls: list[Any] = []
    term_gram = ReferenceBackend.term_gram

    def count(self: ReferenceBackend, args: Any) -> None:
        calls.append(args)
        term_gram(self, args)

    monkeypatch.setattr(ReferenceBackend, "term_gram", count)
    params = make_params()
    optimizer = make_combined(name, params, backend="reference")
    optimizer.backward(losses_of(params, 0))
    optimizer.clip_grad_norm_(5.0)
    optimizer.step()
    assert len(calls) == 1


def test_weights_of_absent_terms_may_be_anything(backend: str) -> None:
    class NanWhereAbsent(Rule):
        def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
            return gram.diagonal() / gram.diagonal()

    params = make_params()
    optimizer = CombinedAdam(params, NanWhereAbsent(), backend=backend, terms=("a", "b", "c"))
    grads = gradients(params, 1)
    assert "c" not in grads
    optimizer.backward(losses_of(params, 1))
    summed = [np.sum(of_param, axis=0) for of_param in zip(*grads.values(), strict=True)]
    check_values(optimizer.clip_grad_norm_(1.0), np.array(norm(summed)), 1e-12)
    optimizer.step()
    assert all(p.isfinite().all() for p in params)
