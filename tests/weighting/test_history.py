"""Weightings that change from call to call: each step against its formula, checkpoints, and terms that come and go."""

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mtadam_fused import weighting as w
from oracles import numpy_weighting
from oracles.numpy_weighting import Answer
from oracles.tolerances import TooFar, check_values
from tests.weighting.losses import LOSSES, PRIORITIES, TERMS, check, grad_of, leaves, present_losses

SEED = 11
BY_NAME = dict(zip(TERMS, PRIORITIES.tolist(), strict=True))

# What makes the weighting, its formula for the last of the rows, and the formula's faults.
CASES: dict[str, tuple[Callable[..., w.Weighting], Callable[..., Answer], tuple[str, ...]]] = {
    "dwa": (
        lambda **o: w.DWA(1, **o),
        lambda x, k, **o: numpy_weighting.dwa(x, k, 1, 2.0, **o),
        ("inverse", "with the present loss", "sum of 1"),
    ),
    "dwa, periods": (
        lambda **o: w.DWA(2, temperature=0.5, **o),
        lambda x, k, **o: numpy_weighting.dwa(x, k, 2, 0.5, **o),
        ("inverse", "sum of 1"),
    ),
    "softadapt": (
        lambda **o: w.SoftAdapt(**o),
        lambda x, k, **o: numpy_weighting.softadapt(x, k, 0.1, 1, False, False, **o),
        ("ratio", "without the present loss", "sum of K"),
    ),
    "softadapt, periods": (
        lambda **o: w.SoftAdapt(-0.3, batches=2, **o),
        lambda x, k, **o: numpy_weighting.softadapt(x, k, -0.3, 2, False, False, **o),
        ("ratio", "sum of K"),
    ),
    "softadapt, normalized": (
        lambda **o: w.SoftAdapt(2.0, normalized=True, **o),
        lambda x, k, **o: numpy_weighting.softadapt(x, k, 2.0, 1, True, False, **o),
        ("not normalized", "without the present loss"),
    ),
    "softadapt, by loss": (
        lambda **o: w.SoftAdapt(0.1, normalized=True, loss_weighted=True, **o),
        lambda x, k, **o: numpy_weighting.softadapt(x, k, 0.1, 1, True, True, **o),
        ("not by loss", "sum of K"),
    ),
    "relobralo": (
        lambda **o: w.ReLoBRaLo(0.7, 0.5, 0.8, **{"seed": SEED, **o}),
        lambda x, k, **o: numpy_weighting.relobralo(x, k, 0.7, 0.5, 0.8, SEED, **o),
        ("no lookback", "lookback to the last", "compared with the first", "bounded sum"),
    ),
    "relobralo, no lookback": (
        lambda **o: w.ReLoBRaLo(0.9, 1.0, **o),
        lambda x, k, **o: numpy_weighting.relobralo(x, k, 0.9, 1.0, 1.0, 0, **o),
        ("compared with the first", "bounded sum"),
    ),
    "random": (
        lambda **o: w.RandomWeighting(**{"seed": SEED, **o}),
        lambda x, k, **o: numpy_weighting.random_weights(x, k, SEED, **o),
        ("the same each time", "uniform", "sum of K"),
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


def calls() -> np.ndarray:
    """Return losses that fall at different rates, with noise; in some calls a term is absent, and c comes late."""
    noise = np.random.default_rng(5).normal(size=(9, 3))
    rows = LOSSES * np.exp(-np.arange(9)[:, None] * [0.1, 0.4, 0.02] + 0.3 * noise)
    rows[:2, 2] = np.nan
    rows[3, 0] = rows[5, 1] = np.nan
    return rows


def run(weighting: w.Weighting, rows: np.ndarray) -> Tensor:
    return torch.tensor([weighting(present_losses(row)).item() for row in rows], dtype=torch.float64)


def differs(weighting: w.Weighting, row: np.ndarray, expected: Answer) -> bool:
    try:
        check(weighting, present_losses(row), expected, 1e-3)
    except TooFar:
        return True
    return False


@pytest.mark.parametrize("priorities", [None, BY_NAME])
@each_case
def test_every_call(name: str, priorities: dict[str, float] | None) -> None:
    make, right, faults = CASES[name]
    factors = np.ones(3) if priorities is None else PRIORITIES
    rows = calls()
    weighting = make(priorities=priorities)
    rejected = set()
    for count, row in enumerate(rows, start=1):
        before = copy.deepcopy(weighting)
        check(weighting, present_losses(row), right(rows[:count], factors), 1e-11)
        weighting.eval()(leaves(np.array([1000.0, 1000.0, 1000.0])))  # changes nothing
        weighting.train()
        for fault in faults:
            if differs(copy.deepcopy(before), row, right(rows[:count], factors, fault=fault)):
                rejected.add(fault)
    assert rejected == set(faults)


@each_case
def test_weights_are_held_constant(name: str) -> None:
    weighting = CASES[name][0]()
    run(weighting, calls()[:-1])
    losses = leaves(calls()[-1])
    total = weighting(losses)
    total.backward()
    by_weights = sum(float(grad_of(loss) * loss.detach()) for loss in losses.values())  # none of it through the weights
    assert total.item() == pytest.approx(by_weights, rel=1e-12)


@each_case
def test_evaluation_uses_what_training_has_come_to(name: str) -> None:
    make, right, _ = CASES[name]
    weighting = make()
    rows = calls()
    run(weighting, rows)
    state = copy.deepcopy(weighting.state_dict())
    losses = leaves()
    weighting.eval()(losses).backward()
    found = np.array([grad_of(loss).item() for loss in losses.values()])
    if name == "random":
        expected = np.full(3, 1 / 3)
    elif name.startswith("dwa"):
        expected = right(np.vstack([rows, LOSSES]), np.ones(3)).by_loss  # weights of the next call
    elif name == "softadapt, by loss":
        shares = right(rows, np.ones(3)).by_loss * LOSSES / rows[-1]  # the present losses are those of this call
        expected = shares / shares.sum()
    else:
        expected = right(rows, np.ones(3)).by_loss
    check_values(torch.from_numpy(found), expected, 1e-11)
    weighting({"new": torch.tensor(3.0)})
    assert [*weighting.state_dict()] == [*state]
    assert all(torch.equal(value, state[key]) for key, value in weighting.state_dict().items() if "extra" not in key)
    with pytest.raises(TooFar):
        check_values(torch.from_numpy(found), np.roll(expected, 1) + 1e-2, 1e-3)


@pytest.mark.parametrize("seen", [0, 1, 4])
@each_case
def test_a_checkpoint_goes_on_bit_for_bit(name: str, seen: int) -> None:
    make = CASES[name][0]
    first, second, fresh = make(), make(), make()
    if name in ("relobralo", "random"):
        second, fresh = make(seed=SEED + 1), make(seed=SEED + 1)
    run(first, calls()[:seen])
    run(second, calls()[::-1][:2])  # to be overwritten
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.terms == first.terms
    expected = run(first, calls()[seen:])
    assert torch.equal(run(second, calls()[seen:]), expected)
    if seen:
        assert not torch.equal(run(fresh, calls()[seen:]), expected)


@each_case
def test_two_calls_before_a_backward_pass(name: str) -> None:
    weighting, other = CASES[name][0](), CASES[name][0]()
    losses = leaves()
    (weighting(losses) + weighting(losses)).backward()
    expected = leaves()
    for _ in range(2):
        other(expected).backward()
    for term in TERMS:
        assert torch.equal(grad_of(losses[term]), grad_of(expected[term]))


@pytest.mark.parametrize("name", ["dwa", "softadapt, by loss", "relobralo", "random"])
def test_compiles_to_one_graph(name: str) -> None:
    torch.compiler.reset()
    make, right, _ = CASES[name]
    weighting = make()
    weighting.compile(fullgraph=True, backend="aot_eager")
    rows = calls()[:4]  # compiled anew where terms come or go
    for count, row in enumerate(rows, start=1):
        check(weighting, present_losses(row), right(rows[:count], np.ones(3)), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_case
def test_16_bit_losses_are_kept_in_float32(name: str, dtype: torch.dtype) -> None:
    make, right, _ = CASES[name]
    weighting = make().to(dtype)
    rounded = torch.from_numpy(calls()).to(dtype).double().numpy()
    for count, row in enumerate(rounded, start=1):
        losses = {term: loss.detach().to(dtype) for term, loss in present_losses(row).items()}
        total = weighting(losses)
        assert total.dtype == torch.float32
        assert total.item() == pytest.approx(right(rounded[:count], np.ones(3)).total, rel=1e-4)
        weighting.to(dtype)
    assert all(b.dtype in (torch.float32, torch.int64) for b in weighting.buffers())


@each_case
def test_losses_in_a_list(name: str) -> None:
    by_position, by_name = CASES[name][0](priorities=PRIORITIES.tolist()), CASES[name][0](priorities=BY_NAME)
    for _ in range(3):
        assert torch.equal(by_position(list(leaves().values())), by_name(leaves()))


# -- random numbers ----------------------------------------------------------------------------------------------------


def test_lookbacks_have_their_probability() -> None:
    """With alpha=1 the weights stay 1 until the first lookback: rho is 1 in all calls, or 0 in all."""
    for rho, balanced in ((1.0, False), (0.0, True)):
        weighting = w.ReLoBRaLo(1.0, rho, seed=0)
        run(weighting, calls()[2:])
        assert bool((weighting.weights != 1).any()) == balanced
    integers = w.ReLoBRaLo(seed=3).random.draw(20_000, torch.device("cpu"))
    assert (integers < int(0.9 * 2**53)).double().mean().item() == pytest.approx(0.9, abs=0.01)


def test_random_weights_are_softmaxes_of_normal_draws() -> None:
    weighting = w.RandomWeighting(seed=0)
    like = torch.ones(1, dtype=torch.float64)
    normal = weighting.random.normal(20_000, like)
    assert normal.mean().item() == pytest.approx(0, abs=0.03)
    assert normal.std().item() == pytest.approx(1, abs=0.03)
    assert (normal.abs() > 1.96).double().mean().item() == pytest.approx(0.05, abs=0.01)
    assert torch.corrcoef(torch.stack([normal, weighting.random.normal(20_000, like)]))[0, 1].abs() < 0.03
    assert weighting.random.normal(20_000, like.float()).isfinite().all()


def test_seeds() -> None:
    """A seed decides all draws; another one, also the next, gives others; without one torch's generator decides."""
    expected = run(w.RandomWeighting(seed=0), calls())
    assert torch.equal(run(w.RandomWeighting(seed=0), calls()), expected)
    assert not (run(w.RandomWeighting(seed=1), calls())[:-1] == expected[1:]).any()
    torch.manual_seed(0)
    first, second = w.RandomWeighting(), w.RandomWeighting()
    assert first.random.seed != second.random.seed
    torch.manual_seed(0)
    assert w.RandomWeighting().random.seed == first.random.seed


def test_known_random_numbers() -> None:
    """splitmix64 of 0 as in the generator's published test vector, and the module's draws as the oracle's."""
    assert numpy_weighting.splitmix64(0) == 0xE220A8397B1DCDAF
    random = w.RandomWeighting(seed=2**62 - 1).random
    for call in range(3):
        drawn = random.draw(5, torch.device("cpu")).tolist()
        assert drawn == numpy_weighting.random_integers(2**62 - 1, call, 5)
