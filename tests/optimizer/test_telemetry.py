"""Running norms, scales and cosines by parameter, against float64 NumPy."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.rules import FixedWeights, Rule
from oracles.tolerances import TooFar, check_values

Gradients = Mapping[str, Sequence[np.ndarray | None]]  # of each term, by parameter

SHAPES = [(3, 4), (5,), (2, 2, 2)]
NAMES = ["one.weight", "one.bias", "two"]
TERMS = ("a", "b", "c")
NONE = dict.fromkeys(TERMS, (True,) * 3)  # no term is absent anywhere


class Looking(Rule):
    """Weights all one; looks at the gradients."""

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)


class Blind(Looking):
    needs_gram = False


def make_params(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def draw(seed: int, reaches: Mapping[str, Sequence[bool]] = NONE) -> Gradients:
    """Draw gradients of the terms, of different sizes; None where ``reaches`` says that there is none."""
    generator = np.random.default_rng(seed)
    return {
        term: [
            10.0**k * generator.standard_normal(s) if r else None for s, r in zip(SHAPES, reaches[term], strict=True)
        ]
        for k, term in enumerate(reaches)
    }


def step(optimizer: Any, params: Sequence[nn.Parameter], grads: Gradients, clip: bool = False) -> None:
    for term, of_term in grads.items():
        with optimizer.term(term):
            for p, grad in zip(params, of_term, strict=True):
                p.grad = None if grad is None else torch.from_numpy(grad).to(p.dtype)
    if clip:
        optimizer.clip_grad_norm_(1e9)
    optimizer.step()


def named(params: Sequence[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return list(zip(NAMES, params, strict=True))


def norm(grad: np.ndarray | None) -> float:
    return np.nan if grad is None else float(np.sqrt(np.square(grad).sum()))


def cosine(x: np.ndarray | None, y: np.ndarray | None) -> float:
    return np.nan if x is None or y is None else float((x * y).sum() / (norm(x) * norm(y)))


def check(
    found: Mapping[Any, Mapping[str, Tensor]], expected: Mapping[Any, Sequence[float]], rtol: float = 1e-12
) -> None:
    """Compare what is known by names with values in the parameters' order.

    Raises:
        TooFar: they differ.
    """
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert list(found[key]) == NAMES
        assert all(value.shape == () for value in found[key].values())
        check_values(torch.stack(list(found[key].values())), np.array(values), rtol)


# -- running norms and scales ------------------------------------------------------------------------------------------

REACHES = {"a": (True, True, True), "b": (True, False, True), "c": (True, True, False)}


def test_running_norms_by_name(backend: str) -> None:
    params, beta3 = make_params(), 0.75
    optimizer = MTAdam(named(params), betas=(0.9, 0.99, beta3), backend=backend)
    first, second = draw(1, REACHES), draw(2, REACHES)
    step(optimizer, params, first)
    check(optimizer.running_norms(), {term: list(map(norm, first[term])) for term in TERMS})
    step(optimizer, params, second)
    expected = {
        term: [beta3 * norm(x) + (1 - beta3) * norm(y) for x, y in zip(first[term], second[term], strict=True)]
        for term in TERMS
    }
    check(optimizer.running_norms(), expected)
    with pytest.raises(TooFar):
        check(optimizer.running_norms(), {term: list(map(norm, second[term])) for term in TERMS})


def test_scales_by_name(backend: str) -> None:
    params, grads = make_params(), draw(1, REACHES)
    mtadam, balanced = MTAdam(named(params), backend=backend), BalancedAdam(named(params), backend=backend)
    for optimizer in (mtadam, balanced):
        step(optimizer, params, grads)
    anchors = [norm(grad) for grad in grads["a"]]
    check(mtadam.term_scales(), {t: [x / norm(g) for x, g in zip(anchors, grads[t], strict=True)] for t in TERMS})
    expected = {term: [1 / norm(grad) for grad in grads[term]] for term in TERMS}
    check(balanced.term_scales(), expected)
    with pytest.raises(TooFar):
        check(mtadam.term_scales(), expected)


def test_names_go_with_their_parameters_whatever_their_tables() -> None:
    """Parameters of two dtypes are in two tables."""
    params = make_params()
    params[1] = nn.Parameter(params[1].detach().float())
    optimizer, grads = MTAdam(named(params)), draw(1)
    step(optimizer, params, grads)
    check(optimizer.running_norms(), {term: list(map(norm, grads[term])) for term in TERMS}, rtol=1e-6)
    combined = CombinedAdam(named(params), Looking())
    step(combined, params, grads)
    check(combined.term_cosines(), cosines(grads), rtol=1e-6)


def test_without_names_there_are_tensors() -> None:
    params, grads = make_params(), draw(1)
    optimizer = MTAdam(params)
    step(optimizer, params, grads)
    for found in (optimizer.running_norms(), optimizer.term_scales()):
        assert [values.shape for values in found.values()] == [(3,)] * 3
    check_values(optimizer.running_norms()["b"], np.array(list(map(norm, grads["b"]))), 1e-12)
    combined = CombinedAdam(params, Looking())
    step(combined, params, grads)
    assert [values.shape for values in combined.term_cosines().values()] == [(3,)] * 3


def test_before_the_first_step() -> None:
    params = make_params()
    assert MTAdam(params).running_norms() == CombinedAdam(params, Looking()).term_cosines() == {}
    fixed = MTAdam(named(params), terms=TERMS).term_scales()
    pairs = CombinedAdam(named(params), Looking(), terms=TERMS).term_cosines()
    assert list(fixed) == list(TERMS)
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    for values in (*fixed.values(), *pairs.values()):
        assert list(values) == NAMES
        assert all(value.isnan() for value in values.values())


def test_names_of_two_groups() -> None:
    params, more = make_params(), make_params()[:2]
    optimizer = MTAdam(named(params))
    optimizer.add_param_group({"params": [("one.weight", more[0]), ("three", more[1])]})
    with optimizer.term("a"):
        more[0].grad = torch.full_like(more[0], 2.0)
    optimizer.step()
    norms = optimizer.running_norms()["a"]
    assert list(norms) == ["group0.one.weight", *NAMES[1:], "group1.one.weight", "three"]
    assert norms["group1.one.weight"].item() == pytest.approx(2 * 12**0.5)
    assert norms["group0.one.weight"].isnan()


def test_names_stay_with_copies_and_checkpoints() -> None:
    params = make_params()
    optimizer = MTAdam(named(params))
    step(optimizer, params, draw(1))
    other = MTAdam(named(make_params()))
    other.load_state_dict(optimizer.state_dict())
    for loaded in (other, copy.deepcopy(optimizer)):
        assert loaded.running_norms() == optimizer.running_norms()
        assert all(scale.isnan() for scale in loaded.term_scales()["a"].values())  # of no step of its own


# -- cosines -----------------------------------------------------------------------------------------------------------


def cosines(grads: Gradients, seen: Sequence[bool] = (True,) * 3) -> dict[tuple[str, str], list[float]]:
    """Return the cosines of all pairs of terms, NaN for parameters that are not ``seen``."""
    terms = list(grads)
    return {
        (a, b): [cosine(x, y) if s else np.nan for x, y, s in zip(grads[a], grads[b], seen, strict=True)]
        for i, a in enumerate(terms)
        for b in terms[i + 1 :]
    }


def test_cosines_of_the_shared_parameters(backend: str) -> None:
    params = make_params()
    optimizer = CombinedAdam(named(params), Looking(), backend=backend)
    for seed in range(2):
        grads = draw(seed)
        step(optimizer, params, grads)
        check(optimizer.term_cosines(), cosines(grads))
    with pytest.raises(TooFar):
        check(optimizer.term_cosines(), cosines(draw(0)))
    grads = draw(3, REACHES)
    step(optimizer, params, grads)
    check(optimizer.term_cosines(), cosines(grads, (True, False, False)))


def test_cosines_of_parallel_gradients_are_at_most_1(backend: str) -> None:
    params = make_params(torch.float32)
    optimizer = CombinedAdam(named(params), Looking(), backend=backend)
    grads: dict[str, Sequence[np.ndarray]] = {"a": [g for g in draw(0)["a"] if g is not None]}
    step(optimizer, params, grads | {"b": [-3.0 * g for g in grads["a"]], "c": [0 * g for g in grads["a"]]})
    found = optimizer.term_cosines()
    for value in found["a", "b"].values():
        assert -1.0 <= value.item() <= -1.0 + 1e-6
    assert all(value.isnan() for value in (*found["a", "c"].values(), *found["b", "c"].values()))


def test_cosines_of_named_parameters_of_an_absent_term_and_without_a_look() -> None:
    params = make_params()
    optimizer = CombinedAdam(named(params), Looking(parameters=params[1:]), passes="per_term")
    step(optimizer, params, draw(0))
    check(optimizer.term_cosines(), cosines(draw(0), (False, True, True)))
    absent = draw(1, {**NONE, "b": (False,) * 3})
    step(optimizer, params, absent)
    check(optimizer.term_cosines(), cosines(absent, (False, True, True)))
    optimizer.rule = Blind()
    step(optimizer, params, draw(2))
    check(optimizer.term_cosines(), cosines(draw(2), (False,) * 3))  # none from the step before


def test_clipping_shows_the_cosines_of_all_parameters() -> None:
    params, grads = make_params(), draw(0, REACHES)
    for rule in (Looking(), FixedWeights()):
        optimizer = CombinedAdam(named(params), rule, passes="per_term")
        step(optimizer, params, grads, clip=True)
        check(optimizer.term_cosines(), cosines(grads))


def losses_of(params: Sequence[nn.Parameter], seed: int) -> dict[str, Tensor]:
    """Return losses with the gradients of ``draw(seed)``."""
    grads = {k: [torch.from_numpy(g) for g in of if g is not None] for k, of in draw(seed).items()}
    return {k: torch.stack([(p * g).sum() for p, g in zip(params, of, strict=True)]).sum() for k, of in grads.items()}


@pytest.mark.parametrize("clip", [True, False])
def test_one_backward_pass_shows_the_cosines_that_the_rule_saw(clip: bool) -> None:
    params = make_params()
    optimizer = CombinedAdam(named(params), Looking(parameters=[params[2], params[0]]))
    assert optimizer.takes_one_pass
    for seed, left_out in ((0, "none"), (1, "b")):
        losses = losses_of(params, seed)
        losses.pop(left_out, None)
        optimizer.backward(losses)
        if clip:
            optimizer.clip_grad_norm_(1e9)
        optimizer.step()
        grads = {k: of if k != left_out else [None] * 3 for k, of in draw(seed).items()}
        check(optimizer.term_cosines(), cosines(grads, (True, False, True)))
    step(optimizer, params, draw(2))  # a pass per term, with the same optimizer
    check(optimizer.term_cosines(), cosines(draw(2), (True, False, True)))
    blind = CombinedAdam(named(params), Blind(parameters=params))
    blind.backward(losses_of(params, 0))
    blind.step()
    check(blind.term_cosines(), cosines(draw(0), (False,) * 3))


def test_parameters_that_have_left_have_no_cosines() -> None:
    params = make_params()
    optimizer = CombinedAdam(params, Looking())
    step(optimizer, params, draw(0))
    optimizer.param_groups[0]["params"] = [params[0], nn.Parameter(params[1].detach().clone()), params[2]]
    assert optimizer.term_cosines()["a", "b"].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("make", [MTAdam, lambda params: CombinedAdam(params, Looking())])
def test_what_is_returned_is_a_copy(make: Callable[[Any], Any]) -> None:
    params = make_params()
    optimizer = make(params)

    def read() -> list[Tensor]:
        if isinstance(optimizer, CombinedAdam):
            return list(optimizer.term_cosines().values())
        return [*optimizer.running_norms().values(), *optimizer.term_scales().values()]

    step(optimizer, params, draw(0))
    before = read()
    kept = [values.clone() for values in before]
    step(optimizer, params, draw(1))
    assert all(map(torch.equal, before, kept))
    assert not torch.equal(read()[0], before[0])
