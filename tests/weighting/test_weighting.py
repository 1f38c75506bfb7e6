"""Weightings of the losses: each against a float64 formula, at its optimum, and with losses that it cannot use."""

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import weighting as w
from oracles import numpy_weighting
from oracles.numpy_weighting import Answer
from oracles.tolerances import TooFar, check_values
from tests.weighting.losses import LOSSES, PRIORITIES, TERMS, check, grad_of, histories, leaves, present_losses

KINDS = ["regression", "classification", "regression"]
VALUES = np.array([2.3, 0.1, 40.0])
LEARNED = np.array([0.7, -1.6, 2.5])
MU, IDEAL = 90.0, np.array([-0.5, 2.0, 30.0])

# What makes the weighting, its formula, and the formula's faults.
CASES: dict[str, tuple[Callable[..., w.Weighting], Callable[..., Answer], tuple[str, ...]]] = {
    "equal": (lambda **o: w.EqualWeights(**o), numpy_weighting.equal, ("sum",)),
    "prior": (
        lambda **o: w.PriorLoss(dict(zip(TERMS, VALUES, strict=True)), **o),
        lambda x, k, **o: numpy_weighting.prior(x, k, VALUES, **o),
        ("relative",),
    ),
    "given": (
        lambda **o: w.InitialLoss(values=dict(zip(TERMS, VALUES, strict=True)), **o),
        lambda x, k, **o: numpy_weighting.prior(x, k, VALUES, **o),
        ("relative",),
    ),
    "real-time": (lambda **o: w.RealTimeLoss(**o), numpy_weighting.real_time, ("divisor differentiated",)),
    "uncertainty": (
        lambda **o: w.Uncertainty(TERMS, **o),
        lambda x, k, **o: numpy_weighting.uncertainty(x, k, LEARNED, **o),
        ("no half", "log p^2", "priority of the loss alone"),
    ),
    "kendall": (
        lambda **o: w.KendallUncertainty(TERMS, KINDS, **o),
        lambda x, k, **o: numpy_weighting.kendall(x, k, LEARNED, KINDS, **o),
        ("kinds alike", "whole s", "priority of the loss alone"),
    ),
    "imtll": (
        lambda **o: w.IMTLL(TERMS, **o),
        lambda x, k, **o: numpy_weighting.imtll(x, k, LEARNED, **o),
        ("a variance", "half s", "priority of the loss alone"),
    ),
    "geometric": (
        lambda **o: w.GeometricMean(**o),
        numpy_weighting.geometric,
        ("product", "priorities as factors", "held constant"),
    ),
    "stch": (
        lambda **o: w.STCH(MU, ideal=dict(zip(TERMS, IDEAL, strict=True)), **o),
        lambda x, k, **o: numpy_weighting.stch(x, k, MU, IDEAL, **o),
        ("no ideal", "maximum", "softmax alone"),
    ),
}


WITHOUT_TERMS = ("equal", "real-time", "geometric")
JOINT = ("geometric", "stch")


def set_learned(weighting: w.Weighting) -> w.Weighting:
    """``weighting`` with LEARNED in place of what its parameter starts at."""
    for parameter in weighting.parameters():
        parameter.data = torch.from_numpy(LEARNED.copy())
    return weighting


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("priorities", [None, PRIORITIES.tolist(), dict(zip(TERMS, PRIORITIES, strict=True))])
@pytest.mark.parametrize("name", CASES)
def test_formula(name: str, priorities: Any, dtype: torch.dtype) -> None:
    make, right, faults = CASES[name]
    if isinstance(priorities, list) and name in WITHOUT_TERMS:
        priorities = dict(zip(TERMS, priorities, strict=True))  # those know no terms to put a list in order
    factors = np.ones(3) if priorities is None else PRIORITIES
    relative = 1e-12 if dtype == torch.float64 else 2e-6
    check(set_learned(make(priorities=priorities)), leaves(dtype=dtype), right(LOSSES, factors), relative)
    for fault in faults:
        if priorities is not None or not any(word in fault for word in ("priorit", "softmax alone")):
            with pytest.raises(TooFar):
                check(set_learned(make(priorities=priorities)), leaves(), right(LOSSES, factors, fault=fault), 1e-3)


@pytest.mark.parametrize("name", CASES)
def test_compiles_to_one_graph(name: str) -> None:
    torch.compiler.reset()
    make, right, _ = CASES[name]
    weighting = set_learned(make())
    weighting.compile(fullgraph=True, backend="aot_eager")
    check(weighting, leaves(), right(LOSSES, np.ones(3)), 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_lists_validation_types_and_copies(name: str) -> None:
    weighting = set_learned(CASES[name][0]())
    expected = weighting(leaves())
    with torch.no_grad():
        assert torch.equal(weighting(leaves()), expected)
    assert torch.equal(copy.deepcopy(weighting)(leaves()), expected)
    if name in WITHOUT_TERMS:
        by_position = type(weighting)(priorities=PRIORITIES.tolist())
        by_name = type(weighting)(priorities=dict(zip(TERMS, PRIORITIES.tolist(), strict=True)))
        assert torch.equal(by_position(list(leaves().values())), by_name(leaves()))
    else:
        assert torch.equal(weighting(list(leaves().values())), expected)
    for dtype in (torch.bfloat16, torch.float16):
        total = weighting({term: loss.detach().to(dtype)[None] for term, loss in leaves().items()})
        assert total.dtype == torch.float32
        torch.testing.assert_close(total.double(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name not in JOINT])
def test_an_absent_term_contributes_nothing(name: str) -> None:
    _, right, _ = CASES[name]
    weighting = set_learned(CASES[name][0](priorities=dict(zip(TERMS, PRIORITIES, strict=True))))
    losses = leaves()
    weighting({"c": losses["c"], "a": losses["a"]}).backward()
    full, factor = right(LOSSES, PRIORITIES), 1.5 if name == "equal" else 1.0  # K is the number of losses in the call
    for term in ("a", "c"):
        check_values(grad_of(losses[term]), factor * full.by_loss[TERMS.index(term)], 1e-12)
    for parameter in weighting.parameters():
        assert full.by_learned is not None
        check_values(grad_of(parameter), full.by_learned * [1, 0, 1], 1e-12)


@pytest.mark.parametrize("name", JOINT)
def test_an_absent_term_or_one_of_priority_0_is_left_out(name: str) -> None:
    make, _, _ = CASES[name]
    priorities, there = dict(zip(TERMS, PRIORITIES.tolist(), strict=True)), [0, 2]
    if name == "geometric":
        right = numpy_weighting.geometric(LOSSES[there], PRIORITIES[there])
    else:
        right = numpy_weighting.stch(LOSSES[there], PRIORITIES[there], MU, IDEAL[there])
    losses = leaves()
    check(make(priorities=priorities), {"a": losses["a"], "c": losses["c"]}, right, 1e-12)
    by_loss = np.array([right.by_loss[0], 0.0, right.by_loss[1]])
    check(make(priorities={**priorities, "b": 0.0}), leaves(), Answer(right.total, by_loss), 1e-12)


def test_smooth_maximum_is_near_the_maximum() -> None:
    for mu in (1e-6, 1.0, 100.0):
        excess = w.STCH(mu)(leaves()).item() - LOSSES.max()
        assert 0 <= excess <= mu * np.log(3)
    losses = leaves()
    w.STCH(1e-3)(losses).backward()
    assert [grad_of(loss).item() for loss in losses.values()] == [0.0, 0.0, 1.0]


# -- initial losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_initial_losses_are_means_of_the_first_batches(batches: int) -> None:
    weighting = w.InitialLoss(batches, priorities=dict(zip(TERMS, PRIORITIES, strict=True)))
    for count, row in enumerate(histories(), start=1):
        present = ~np.isnan(row)
        right = numpy_weighting.initial(histories()[:count], row, PRIORITIES, batches)
        total = float(np.sum((right.by_loss * row)[present]))
        check(weighting, present_losses(row), Answer(total, right.by_loss[present]), 1e-12)
        weighting.eval()(leaves(np.array([1000.0, 1000.0, 1000.0])))  # not counted
        weighting.train()
    for fault in ("last",) if batches == 1 else ("last", "first"):
        with pytest.raises(TooFar):
            check(weighting, leaves(), numpy_weighting.initial(histories(), LOSSES, PRIORITIES, batches, fault), 1e-3)


def test_initial_losses_before_training_are_ones_own() -> None:
    weighting = w.InitialLoss().eval()
    assert weighting(leaves()) == 3
    assert weighting({"a": torch.tensor(9.0)}) == 1
    assert weighting.terms == ()


@pytest.mark.parametrize("seen", range(5))
def test_initial_losses_are_saved(seen: int) -> None:
    def run(calls: list[np.ndarray], weighting: w.InitialLoss) -> Tensor:
        return torch.stack([weighting(present_losses(row)).detach() for row in calls])

    first = w.InitialLoss(batches=3)
    if seen:
        run(histories()[:seen], first)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = w.InitialLoss(batches=3)
    second.load_state_dict(torch.load(file, weights_only=True))
    expected = run(histories()[seen:], first)
    assert torch.equal(run(histories()[seen:], second), expected)
    if seen:
        assert not torch.equal(run(histories()[seen:], w.InitialLoss(batches=3)), expected)
        with pytest.raises(RuntimeError, match="sums"):
            w.InitialLoss().load_state_dict({})


# -- learned weights ---------------------------------------------------------------------------------------------------


def minimize(weighting: w.Weighting, losses: dict[str, Tensor]) -> np.ndarray:
    """Return the weighting's parameter at its optimum for constant losses."""
    (parameter,) = weighting.double().parameters()
    optimizer = torch.optim.LBFGS(
        [parameter], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = weighting(losses)
        total.backward()
        return total

    optimizer.step(closure)
    return parameter.detach().numpy()


@pytest.mark.parametrize("priorities", [None, PRIORITIES.tolist()])
def test_learned_weights_reach_their_optimum(priorities: list[float] | None) -> None:
    p = minimize(w.Uncertainty(TERMS, priorities=priorities), leaves())
    variances = np.exp(minimize(w.KendallUncertainty(TERMS, KINDS, priorities=priorities), leaves()))
    best = np.array([numpy_weighting.best_p(loss) for loss in LOSSES])
    check_values(torch.from_numpy(p**4), LOSSES / 2 * (1 + p**2), 1e-6)
    check_values(torch.from_numpy(p), best, 1e-6)
    check_values(torch.from_numpy(variances), LOSSES * [1, 2, 1], 1e-6)
    scales = np.exp(minimize(w.IMTLL(TERMS, priorities=priorities), leaves()))
    check_values(torch.from_numpy(scales), 1 / LOSSES, 1e-6)
    with pytest.raises(TooFar):
        check_values(torch.from_numpy(p**2), LOSSES, 1e-2)
    with pytest.raises(TooFar):
        check_values(torch.from_numpy(variances), LOSSES, 1e-2)


@pytest.mark.parametrize("kind", [w.Uncertainty, w.KendallUncertainty, w.IMTLL])
def test_docstring_keeps_weight_decay_off(kind: type[w.Weighting]) -> None:
    example = (kind.__doc__ or "").split("::\n\n")[1].split("\n\n")[0]
    model = nn.Linear(3, 2)
    out = model(torch.ones(1, 3))
    losses = {name: out.square().sum() for name in ("fit", "size", "depth", "digit")}
    names: dict[str, Any] = {"torch": torch, "model": model, kind.__name__: kind, **losses}
    exec("if True:\n" + example, names)
    of_model, of_weighting = names["optimizer"].param_groups
    assert of_weighting["params"] == list(names["weighting"].parameters())
    assert (of_model["weight_decay"] > 0, of_weighting["weight_decay"]) == (True, 0)
    assert all(p.grad is not None for group in (of_model, of_weighting) for p in group["params"])


def test_weight_decay_misses_the_optimum() -> None:
    def train(decay: float) -> float:
        weighting = w.Uncertainty(["a"]).double()
        optimizer = torch.optim.SGD([{"params": weighting.parameters(), "weight_decay": decay}], lr=0.05)
        for _ in range(1000):
            optimizer.zero_grad()
            weighting([torch.tensor(7.0)]).backward()
            optimizer.step()
        return weighting.p.item()

    assert train(0.0) == pytest.approx(numpy_weighting.best_p(7.0), rel=1e-6)
    assert train(0.1) != pytest.approx(numpy_weighting.best_p(7.0), rel=1e-2)


def test_learned_weights_are_saved_with_their_terms() -> None:
    first = set_learned(w.Uncertainty(TERMS))
    second = w.Uncertainty(TERMS).double()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(leaves()), second(leaves()))
    with pytest.raises(ValueError, match=r"the saved terms are \['a', 'b', 'c'\], the weighting's \['c', 'b', 'a'\]"):
        w.Uncertainty(TERMS[::-1]).load_state_dict(first.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_initial_losses_are_summed_in_float32(dtype: torch.dtype) -> None:
    weighting = w.InitialLoss(batches=1000).to(dtype)
    for _ in range(1000):
        total = weighting([torch.tensor(300.0, dtype=dtype), torch.tensor(300.0, dtype=dtype)])
    assert weighting.to(dtype).sums.tolist() == [300_000.0] * 2
    assert total.item() == 2.0


def test_repr_shows_terms_and_priorities() -> None:
    weighting = w.Uncertainty(["a", "b"], priorities=[1.0, 2.0])
    assert repr(weighting) == "Uncertainty(terms=['a', 'b'], priorities={'a': 1.0, 'b': 2.0})"
