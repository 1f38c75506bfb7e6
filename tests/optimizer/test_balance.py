"""The choices of the balance: what each makes a training depend on, and Adam where they come down to it."""

import copy
import pickle
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, MTAdam
from oracles.numpy_oracle import CHOICES
from oracles.tolerances import same
from tests.support.cases import fewer

STEPS = 12
NAMES = ("a", "b", "c")
ANCHORS = ("first", "none", "geometric_mean", "b")
# A tiny eps, so that Adam cancels a common factor; decay apart from the gradient, which has no such factor.
INVARIANT: dict[str, Any] = {"lr": 0.05, "eps": 1e-30, "weight_decay": 0.1, "decoupled_weight_decay": True}

each_memory = pytest.mark.parametrize(
    ("norms", "second_moments"), list(product(CHOICES["norms"], CHOICES["second_moments"]))
)


def start() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64)) for n in ((5, 3), (7,), ())]


def losses(params: Sequence[Tensor], t: int) -> dict[str, Tensor]:
    """Return losses whose gradients shrink and grow apart, with noise; the last does not reach the last parameter."""
    target = torch.randn(7, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    weight, bias, factor = params
    return {
        "a": (weight.sum(0)[0] * factor - 1).square() + (bias - target).square().sum() * 0.5**t,
        "b": 1e3 * ((weight - 0.1).pow(4).sum() + (bias + factor).cosh().sum()),
        "c": 1e-3 * ((weight * weight).sum().sqrt() + (bias * target).sum().square()) * (1 + t % 3),
    }


def train(
    backend: str,
    order: Sequence[str] = NAMES,
    factors: dict[str, float] | None = None,
    late: bool = False,
    optimizer_class: type[MTAdam] = MTAdam,
    **options: Any,
) -> list[Tensor]:
    """Return the parameters after some steps on losses in a given order, times ``factors``.

    Args:
        late: leave out term c in the first steps, and each term in some later one.
    """
    params = start()
    optimizer = optimizer_class(params, backend=backend, **options)
    for t in range(fewer(STEPS, backend)):
        named = losses(params, t)
        absent = NAMES[t % 3] if t > 3 else "c"
        present = [name for name in order if not (late and name == absent)]
        optimizer.zero_grad()
        optimizer.backward({name: (factors or {}).get(name, 1.0) * named[name] for name in present})
        optimizer.step()
    return [p.detach() for p in params]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference of an element, relative to the largest of its parameter."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


# -- order and factors -------------------------------------------------------------------------------------------------


@each_memory
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("anchor", ["none", "geometric_mean", "b"])
def test_the_order_of_the_terms_does_not_matter(
    anchor: str, late: bool, norms: str, second_moments: str, backend: str
) -> None:
    options: dict[str, Any] = {
        "lr": 0.05,
        "weight_decay": 0.1,
        "anchor": anchor,
        "norms": norms,
        "second_moments": second_moments,
    }
    expected = train(backend, late=late, **options)
    for order in (("c", "b", "a"), ("b", "c", "a")):
        assert difference(train(backend, order, late=late, **options), expected) < 1e-9


@each_memory
def test_the_order_matters_to_the_first_as_anchor(norms: str, second_moments: str, backend: str) -> None:
    options: dict[str, Any] = {"lr": 0.05, "anchor": "first", "norms": norms, "second_moments": second_moments}
    assert difference(train(backend, ("c", "b", "a"), **options), train(backend, **options)) > 1e-4


FACTORS = {"a": 1e4, "b": 1e-3, "c": 7.0}


@each_memory
@pytest.mark.parametrize("anchor", ANCHORS)
def test_factors_on_the_losses_do_not_matter(anchor: str, norms: str, second_moments: str, backend: str) -> None:
    options: dict[str, Any] = INVARIANT | {"anchor": anchor, "norms": norms, "second_moments": second_moments}
    expected = train(backend, **options)
    assert difference(train(backend, factors=FACTORS, **options), expected) < 1e-9
    weighted = train(backend, term_weights=FACTORS, **options)
    assert difference(weighted, expected) > 1e-3  # which weights of the terms are for


# Where Adam does not cancel a common factor.
DEPENDING = {
    "eps": {"lr": 0.05, "eps": 0.1},
    "weight decay": {"lr": 0.05, "weight_decay": 0.1},
}


@each_memory
@pytest.mark.parametrize("what", DEPENDING)
def test_without_an_anchor_factors_do_not_matter_to_eps_and_decay(
    what: str, norms: str, second_moments: str, backend: str
) -> None:
    options: dict[str, Any] = DEPENDING[what] | {"norms": norms, "second_moments": second_moments}
    without, with_factors = (train(backend, factors=f, anchor="none", **options) for f in (None, FACTORS))
    assert difference(with_factors, without) < 1e-9
    for anchor in ("first", "geometric_mean"):
        expected = train(backend, anchor=anchor, **options)
        assert difference(train(backend, factors=FACTORS, anchor=anchor, **options), expected) > 1e-4


def test_without_an_anchor_factors_do_not_matter_to_terms_that_come_late(backend: str) -> None:
    """A term that comes changes the mean of all norms, by its factor too: a step of another size, which m remembers."""

    def change(anchor: str) -> float:
        without, with_factors = (
            train(backend, factors=f, late=True, anchor=anchor, **INVARIANT) for f in (None, FACTORS)
        )
        return difference(with_factors, without)

    assert change("none") < 1e-9
    if backend != "triton":  # which makes too few steps
        assert change("geometric_mean") > 1e-4


@each_memory
def test_a_named_anchor_is_that_term_first(norms: str, second_moments: str, backend: str) -> None:
    options: dict[str, Any] = {"lr": 0.05, "norms": norms, "second_moments": second_moments}
    for name in NAMES[:2]:  # the last does not reach all parameters
        order = (name, *(other for other in NAMES if other != name))
        expected = train(backend, order, anchor="first", **options)
        assert difference(train(backend, anchor=name, **options), expected) < 1e-9


# -- Adam --------------------------------------------------------------------------------------------------------------


def make_adam(params: Any, decoupled: bool, **options: Any) -> torch.optim.Optimizer:
    return (torch.optim.AdamW if decoupled else torch.optim.Adam)(params, **options)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("second_moments", CHOICES["second_moments"])
@pytest.mark.parametrize("anchor", ["first", "geometric_mean", "a"])
def test_one_term_is_adam(anchor: str, second_moments: str, decoupled: bool, backend: str) -> None:
    options: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True, "maximize": True}
    ours, theirs = start(), start()
    adam = make_adam(theirs, decoupled, **options)
    choices: dict[str, Any] = {"anchor": anchor, "second_moments": second_moments}
    optimizer = MTAdam(ours, decoupled_weight_decay=decoupled, backend=backend, **options, **choices)
    for t in range(fewer(STEPS, backend)):
        optimizer.backward({"a": losses(ours, t)["a"]})
        optimizer.step()
        adam.zero_grad()
        losses(theirs, t)["a"].backward()
        adam.step()
    assert difference([p.detach() for p in ours], [p.detach() for p in theirs]) < 1e-12


@pytest.mark.parametrize("second_moments", CHOICES["second_moments"])
def test_a_term_for_each_group_is_adam_on_each(second_moments: str, backend: str) -> None:
    ours, theirs = start()[:2], start()[:2]
    adam = torch.optim.Adam([{"params": [theirs[0]], "lr": 0.1}, {"params": [theirs[1]], "weight_decay": 0.1}])
    groups = [{"params": [ours[0]], "lr": 0.1}, {"params": [ours[1]], "weight_decay": 0.1}]
    optimizer = MTAdam(groups, second_moments=second_moments, backend=backend)

    def of_each(params: list[nn.Parameter]) -> dict[str, Tensor]:
        return {"a": (params[0] - 1).square().sum(), "b": 100 * params[1].cosh().sum()}

    for _ in range(fewer(STEPS, backend)):
        optimizer.backward(of_each(ours))
        optimizer.step()
        adam.zero_grad()
        sum(of_each(theirs).values()).backward()  # type: ignore[union-attr]
        adam.step()
    assert difference([p.detach() for p in ours], [p.detach() for p in theirs]) < 1e-12


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_shared_second_moment_is_adam_on_the_balanced_sum(decoupled: bool, backend: str) -> None:
    options: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}
    ours, theirs = start(), start()
    adam = make_adam(theirs, decoupled, **options)
    optimizer = BalancedAdam(ours, **options, decoupled_weight_decay=decoupled, backend=backend)
    assert (optimizer.defaults["anchor"], optimizer.defaults["norms"]) == ("none", "decaying_peak")
    for t in range(fewer(STEPS, backend)):
        grads = {name: torch.autograd.grad(loss, ours, allow_unused=True) for name, loss in losses(ours, t).items()}
        for name, of_term in grads.items():
            with optimizer.term(name):
                for p, g in zip(ours, of_term, strict=True):
                    p.grad = g
        optimizer.step()
        scales = optimizer.term_scales()
        for i, q in enumerate(theirs):
            parts = [scales[name][i] * of_term[i] for name, of_term in grads.items() if of_term[i] is not None]
            q.grad = torch.stack(parts).sum(0)
        adam.step()
    assert difference([p.detach() for p in ours], [p.detach() for p in theirs]) < 1e-12


def test_balanced_adam_is_mtadam_with_other_defaults(backend: str) -> None:
    choices: dict[str, Any] = {"anchor": "none", "norms": "decaying_peak", "second_moments": "shared"}
    betas = BalancedAdam(start()).defaults["betas"]
    assert same(train(backend, optimizer_class=BalancedAdam), train(backend, **choices, betas=betas))
    given: dict[str, Any] = {"anchor": "b", "norms": "peak", "second_moments": "per_term", "betas": (0.5, 0.9, 0.8)}
    assert same(train(backend, optimizer_class=BalancedAdam, **given), train(backend, **given))
    assert not same(train(backend, optimizer_class=BalancedAdam), train(backend))


# -- groups ------------------------------------------------------------------------------------------------------------


def test_groups_have_an_anchor_and_norms_of_their_own(backend: str) -> None:
    choices: list[dict[str, Any]] = [
        {"anchor": "none", "norms": "corrected"},
        {"anchor": "geometric_mean", "norms": "peak"},
        {"anchor": "b"},
    ]
    together, apart = start(), start()
    groups = [{"params": [p], **own} for p, own in zip(together, choices, strict=True)]
    optimizers = [MTAdam([p], backend=backend, **own) for p, own in zip(apart, choices, strict=True)]
    optimizer = MTAdam(groups, backend=backend)
    for t in range(fewer(STEPS, backend)):
        optimizer.backward(losses(together, t))
        optimizer.step()
        for one in optimizers:
            named = losses(apart, t)
            one.backward(named, inputs=one.param_groups[0]["params"])
        for one in optimizers:
            one.step()
    assert same(together, apart)


@pytest.mark.parametrize(("name", "value"), [("anchor", "none"), ("anchor", "b"), ("norms", "peak")])
def test_a_choice_may_change_between_steps(name: str, value: str, backend: str) -> None:
    def run(changed: str | None) -> list[Tensor]:
        params = start()
        optimizer = MTAdam(params, lr=0.05, backend=backend)
        for t in range(4):
            if t == 2 and changed is not None:
                optimizer.param_groups[0][name] = changed
            optimizer.backward(losses(params, t))
            optimizer.step()
        return [p.detach() for p in params]

    assert difference(run(value), run(None)) > 1e-6
    assert same(run(MTAdam(start()).defaults[name]), run(None))


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes_of_state_with_a_shared_second_moment(
    dtype: torch.dtype, terms: int, amsgrad: bool, backend: str
) -> None:
    p = nn.Parameter(torch.randn(fewer(1000, backend), 100).to(dtype))
    optimizer = MTAdam([p], amsgrad=amsgrad, second_moments="shared", backend=backend)
    optimizer.backward([p.sum() for _ in range(terms)])
    optimizer.step()
    state = optimizer.state[p]
    assert set(state) == {"step", "norm_avg", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if amsgrad else set())
    assert state["norm_avg"].shape == (terms,)
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in state.values()}
    per_element = (8 if dtype == torch.float64 else 4) * (3 if amsgrad else 2)
    assert per_element <= sum(storages.values()) / p.numel() <= per_element + 100 / p.numel()


def test_a_later_term_adds_a_norm_and_nothing_else(backend: str) -> None:
    p = nn.Parameter(torch.ones(100))
    optimizer = BalancedAdam([p], backend=backend)
    for names in ("a", "abc"):
        optimizer.backward({name: (k + 1) * p.square().sum() for k, name in enumerate(names)})
        optimizer.step()
    assert {name: value.numel() for name, value in optimizer.state[p].items()} == {
        **{"step": 1, "norm_avg": 3},
        **{"exp_avg": 100, "exp_avg_sq": 100},
    }


EVERY: list[dict[str, Any]] = [
    dict(zip(CHOICES, values, strict=True)) for values in product(ANCHORS, *list(CHOICES.values())[1:])
]
COPIES: dict[str, Callable[[MTAdam], MTAdam]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}


def go_on(optimizer: MTAdam, steps: range) -> list[Tensor]:
    """Train what the optimizer has, some steps without a term."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in steps:
        named = losses(params, t)
        optimizer.backward({name: named[name] for k, name in enumerate(NAMES) if t % 5 != k})
        optimizer.step()
    return [p.detach().clone() for p in params]


def started(backend: str, steps: int = 4, **options: Any) -> MTAdam:
    optimizer = MTAdam(start(), backend=backend, **{"lr": 0.05, "weight_decay": 0.1, "amsgrad": True, **options})
    go_on(optimizer, range(steps))
    return optimizer


@pytest.mark.parametrize("choices", EVERY, ids=lambda choices: ", ".join(choices.values()))
def test_a_loaded_run_goes_on_bit_for_bit(choices: dict[str, Any], backend: str) -> None:
    steps = fewer(4, backend)
    first = started(backend, steps, **choices)
    again = [nn.Parameter(p.detach().clone()) for p in first.param_groups[0]["params"]]
    second = MTAdam(again, second_moments=choices["second_moments"], backend=backend)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert {name: second.param_groups[0][name] for name in ("anchor", "norms")} == {
        name: choices[name] for name in ("anchor", "norms")
    }
    before = [p.detach().clone() for p in again]
    expected = go_on(first, range(steps, 2 * steps))
    assert same(go_on(second, range(steps, 2 * steps)), expected)
    assert not same(before, expected)


@pytest.mark.parametrize("kind", [MTAdam, BalancedAdam])
def test_a_checkpoint_without_the_choices_takes_the_optimizers(kind: type[MTAdam], backend: str) -> None:
    options: dict[str, Any] = {"anchor": "geometric_mean", "norms": "peak", "second_moments": "shared"}
    optimizer = kind(start(), backend=backend, **options)
    go_on(optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        assert group.pop("anchor") == "geometric_mean"
        assert group.pop("norms") == "peak"
    again = [nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    second = kind(again, backend=backend, **options)
    second.load_state_dict(saved)
    assert same(go_on(second, range(3, 6)), go_on(optimizer, range(3, 6)))


@pytest.mark.parametrize("saved_as", CHOICES["second_moments"])
def test_state_of_other_second_moments_is_refused(saved_as: str, backend: str) -> None:
    first = started(backend, second_moments=saved_as)
    (other,) = (choice for choice in CHOICES["second_moments"] if choice != saved_as)
    optimizer = started(backend, second_moments=other, anchor="none", norms="peak")
    before = copy.deepcopy(optimizer.state_dict())
    expected = go_on(copy.deepcopy(optimizer), range(4, 6))
    with pytest.raises(ValueError, match=r"the saved state of parameter 0 has .*exp_avg_sq"):
        optimizer.load_state_dict(first.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0, equal_nan=True)
    assert same(go_on(optimizer, range(4, 6)), expected)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", [MTAdam, BalancedAdam])
@pytest.mark.parametrize("second_moments", CHOICES["second_moments"])
def test_copies_go_on_and_keep_the_choices(second_moments: str, kind: type[MTAdam], way: str, backend: str) -> None:
    optimizer = kind(start(), backend=backend, anchor="b", norms="peak", second_moments=second_moments)
    go_on(optimizer, range(3))
    second = COPIES[way](optimizer)
    assert type(second) is kind
    assert optimizer.defaults.items() <= second.defaults.items()  # torch adds one
    expected = go_on(optimizer, range(3, 6))
    assert same(go_on(second, range(3, 6)), expected)
    assert set(second.state[second.param_groups[0]["params"][0]]) == set(
        optimizer.state[optimizer.param_groups[0]["params"][0]]
    )
    second.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert {name: second.param_groups[1][name] for name in ("anchor", "norms")} == {"anchor": "b", "norms": "peak"}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("second_moments", CHOICES["second_moments"])
def test_copies_from_before_the_first_step_keep_the_second_moments(second_moments: str, way: str, backend: str) -> None:
    optimizer = MTAdam(start(), backend=backend, second_moments=second_moments)
    second = COPIES[way](optimizer)
    assert same(go_on(second, range(3)), go_on(optimizer, range(3)))
    assert ("exp_avg_sq" in second.state[second.param_groups[0]["params"][0]]) == (second_moments == "shared")
