"""Weightings with what they cannot use: an error where a loss can be seen, the documented guard where it cannot."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional

from mtadam_fused import weighting as w
from mtadam_fused.weighting.imtl import LARGEST_LOG_SCALE
from mtadam_fused.weighting.uncertainty import SMALLEST_LOG_VARIANCE, SMALLEST_P


def scalars(**values: float) -> dict[str, Tensor]:
    return {term: torch.tensor(value, requires_grad=True) for term, value in values.items()}


def unseeing(weighting: w.Weighting) -> Any:
    """Compile the weighting: as on a device, it does not look at losses."""
    torch.compiler.reset()
    return torch.compile(weighting, fullgraph=True, backend="eager")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: w.EqualWeights(priorities={"a": -1.0}), r"priorities\['a'\] is -1.0; .* at least 0"),
        (lambda: w.EqualWeights(priorities=[1.0, math.inf]), r"priorities\[1\] is inf"),
        (lambda: w.RealTimeLoss(priorities=2.0), "priorities is 2.0; it must be a mapping"),  # type: ignore[arg-type]
        (lambda: w.PriorLoss({}), "values is {}; give each term a positive number"),
        (lambda: w.PriorLoss({"a": 1.0, "b": 0.0}), r"values\['b'\] is 0.0; it must be positive"),
        (lambda: w.PriorLoss([1.0, -2.0]), r"values\[1\] is -2.0"),
        (lambda: w.PriorLoss({"a": 1.0}, priorities={"b": 1.0}), "unknown term 'a': priorities names"),
        (lambda: w.PriorLoss([1.0, 2.0], priorities=[1.0]), "priorities has 1 weights for 2 terms"),
        (lambda: w.InitialLoss(0), "batches is 0; it must be a whole number of at least 1"),
        (lambda: w.InitialLoss(1.5), "batches is 1.5"),  # type: ignore[arg-type]
        (lambda: w.InitialLoss(2, values={"a": 1.0}), "batches is 2 and values is given; give one"),
        (lambda: w.InitialLoss(values={"a": math.nan}), r"values\['a'\] is nan"),
        (lambda: w.DWA(0), "batches is 0; it must be a whole number of at least 1"),
        (lambda: w.DWA(1, temperature=0.0), "temperature is 0.0; it must be a finite number above 0"),
        (lambda: w.SoftAdapt(math.nan), "beta is nan; it must be a finite number"),
        (lambda: w.SoftAdapt(batches=True), "batches is True"),
        (lambda: w.ReLoBRaLo(alpha=1.5), "alpha is 1.5; it must be a number from 0 to 1"),
        (lambda: w.ReLoBRaLo(rho=-0.1), "rho is -0.1; it must be a number from 0 to 1"),
        (lambda: w.ReLoBRaLo(temperature=-1.0), "temperature is -1.0"),
        (lambda: w.ReLoBRaLo(seed=-1), "seed is -1; it must be a whole number of at least 0"),
        (lambda: w.RandomWeighting(seed=2**62), "seed is 4611686018427387904; .* below"),
        (lambda: w.RandomWeighting(seed=0.5), "seed is 0.5"),  # type: ignore[arg-type]
        (lambda: w.RandomWeighting(priorities={"a": -1.0}), r"priorities\['a'\] is -1.0"),
        (lambda: w.STCH(0.0), "mu is 0.0; it must be a finite number above 0"),
        (lambda: w.STCH(1.0, ideal={"a": math.inf}), r"ideal\['a'\] is inf; it must be a finite number"),
        (lambda: w.STCH(1.0, ideal=[1.0], priorities=[1.0, 2.0]), "priorities has 2 weights for 1 terms"),
        (lambda: w.IMTLL([]), "terms is empty"),
        (lambda: w.Uncertainty([]), "terms is empty"),
        (lambda: w.Uncertainty(["a", "a"]), "each name may stand there once"),
        (lambda: w.KendallUncertainty(["a"], ["ranking"]), "the kind of term 'a' is 'ranking'; it must be one of"),
        (lambda: w.KendallUncertainty(["a"], {"b": "regression"}), "the kind of term 'a' is None"),
        (lambda: w.KendallUncertainty(["a", "b"], ["regression"]), "kinds is .* give each of the terms"),
        (lambda: w.KendallUncertainty(["a"], "regression"), "kinds is 'regression'"),
    ],
)
def test_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("terms", ["ab", 2, [1.5], [None]])
def test_terms_that_are_not_names(terms: Any) -> None:
    with pytest.raises(TypeError, match="term"):
        w.Uncertainty(terms)


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (w.EqualWeights, math.nan, "loss 'b' is nan; it must be finite"),
        (w.RealTimeLoss, 0.0, "loss 'b' is 0.0; it must be positive to be divided by"),
        (w.RealTimeLoss, -2.0, "loss 'b' is -2.0; it must be positive"),
        (w.RealTimeLoss, 1e-40, "loss 'b' is 9.99.*e-41; it must be positive"),  # 1 / 1e-40 is not finite in float32
        (w.InitialLoss, 0.0, "loss 'b' is 0.0; it must be positive"),
        (w.InitialLoss, -1.0, "loss 'b' is -1.0; it must be positive"),
        (w.InitialLoss, math.inf, "loss 'b' is inf; it must be finite"),
        (lambda: w.InitialLoss().eval(), 0.0, "loss 'b' is 0.0; it must be positive"),
        (lambda: w.Uncertainty(["a", "b"]), -1e-3, "loss 'b' is -0.001.*; it must not be negative"),
        (lambda: w.KendallUncertainty(["a", "b"], ["regression"] * 2), -1.0, "loss 'b' is -1.0; it must not be"),
        (lambda: w.IMTLL(["a", "b"]), -1.0, "loss 'b' is -1.0; it must not be negative"),
        (w.GeometricMean, 0.0, "loss 'b' is 0.0; it must be positive to have a logarithm"),
        (w.GeometricMean, -1.0, "loss 'b' is -1.0; it must be positive"),
        (lambda: w.DWA(1), -1.0, "loss 'b' is -1.0; it must not be negative, to be compared"),
        (w.ReLoBRaLo, -1.0, "loss 'b' is -1.0; it must not be negative, to be compared"),
        (w.ReLoBRaLo, math.nan, "loss 'b' is nan; it must be finite"),
        (lambda: w.SoftAdapt(loss_weighted=True), -1.0, "loss 'b' is -1.0; it must not be negative, or its weight"),
        (lambda: w.STCH(1.0), math.inf, "loss 'b' is inf; it must be finite"),
        (lambda: w.STCH(1.0, ideal={"a": 0.0}), 1.0, "unknown term 'b': (priorities|ideal) names"),
        (lambda: w.GeometricMean(priorities={"a": 0.0, "b": 0.0}), 1.0, "priorities is 0 for all losses of the call"),
        (lambda: w.ReLoBRaLo(priorities={"a": 1.0}), 1.0, "unknown term 'b': priorities names"),
        (lambda: w.Uncertainty(["a"]), 1.0, r"unknown term 'b': the terms are \['a'\]"),
        (lambda: w.PriorLoss({"a": 1.0}), 1.0, "unknown term 'b': (priorities|values) names"),
        (lambda: w.InitialLoss(values={"a": 1.0}), 1.0, "unknown term 'b': (priorities|values) names"),
        (lambda: w.EqualWeights(priorities={"a": 1.0}), 1.0, "unknown term 'b': priorities names"),
        (lambda: w.EqualWeights(priorities=[1.0, 2.0]), 1.0, "unknown term 'a': priorities names"),
    ],
)
def test_losses_that_can_be_seen(make: Any, bad: float, message: str) -> None:
    weighting = make()
    terms = weighting.terms
    before = {name: value.clone() for name, value in weighting.named_buffers()}
    with pytest.raises(ValueError, match=message):
        weighting(scalars(a=1.0, b=bad))
    assert all(torch.equal(value, before[name]) for name, value in weighting.named_buffers())
    assert weighting.terms == terms


def test_losses_of_the_wrong_kind_or_number() -> None:
    with pytest.raises(TypeError, match="loss 'a' is a float"):
        w.EqualWeights()({"a": 1.0})
    with pytest.raises(ValueError, match=r"loss 'a' has shape \(3,\)"):
        w.EqualWeights()({"a": torch.ones(3)})
    with pytest.raises(ValueError, match="losses is empty"):
        w.EqualWeights()({})
    for weighting in (w.Uncertainty(range(2)), w.EqualWeights(priorities=[1.0, 2.0]), w.PriorLoss([1.0, 2.0])):
        with pytest.raises(ValueError, match="losses has 3 losses, but there are 2 terms"):
            weighting([torch.tensor(1.0)] * 3)


def test_a_later_loss_may_be_anything_finite() -> None:
    weighting = w.InitialLoss()
    weighting(scalars(a=2.0, b=4.0))
    assert weighting(scalars(a=0.0, b=-4.0)) == -1


# -- guards where losses cannot be seen --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -2.0, 1e-40])
@pytest.mark.parametrize("make", [w.RealTimeLoss, w.InitialLoss])
def test_what_cannot_divide_contributes_nothing(make: type[w.Weighting], bad: float) -> None:
    weighting = make()
    losses = scalars(a=5.0, b=bad)
    total = unseeing(weighting)(losses)
    total.backward()
    assert total == 1
    assert [loss.grad.item() for loss in losses.values() if loss.grad is not None] == [pytest.approx(0.2), 0.0]
    if isinstance(weighting, w.InitialLoss):
        assert weighting.counts.tolist() == [1, 0]
        assert weighting(scalars(a=5.0, b=8.0)) == 2  # measured now


def test_what_is_not_finite_is_not_hidden_and_not_measured() -> None:
    weighting = w.InitialLoss()
    blind = unseeing(weighting)
    for bad in (math.nan, math.inf):
        assert not blind(scalars(a=5.0, b=bad)).isfinite()
    assert weighting.counts.tolist() == [1, 0]
    assert not unseeing(w.RealTimeLoss())(scalars(a=5.0, b=math.inf)).isfinite()


@pytest.mark.parametrize("bad", [0.0, -2.0, 1e-40])
def test_what_has_no_logarithm_is_left_out(bad: float) -> None:
    losses = scalars(a=5.0, b=bad, c=20.0)
    total = unseeing(w.GeometricMean())(losses)
    total.backward()
    assert total.item() == pytest.approx(10.0)
    assert [loss.grad.item() for loss in losses.values() if loss.grad is not None] == pytest.approx([1.0, 0.0, 0.25])
    alone = scalars(b=bad)
    total = unseeing(w.GeometricMean())(alone)
    total.backward()
    assert (total, alone["b"].grad) == (0, 0)


HISTORIES: list[Callable[[], w.Weighting]] = [
    lambda: w.DWA(1),
    w.SoftAdapt,
    lambda: w.SoftAdapt(normalized=True, loss_weighted=True),
    lambda: w.ReLoBRaLo(0.5, 0.5, seed=2),
]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [*HISTORIES, lambda: w.STCH(1.0), w.GeometricMean, w.RandomWeighting])
def test_what_is_not_finite_spoils_one_call_only(make: Any, bad: float) -> None:
    """Later calls are what they are if the loss was absent from the call."""
    spoiled, spared = make(), make()
    if isinstance(spoiled, w.RandomWeighting):
        spared = spoiled.eval()
    for weighting in (spoiled, spared):
        for factor in (1.0, 0.5):
            weighting(scalars(a=5.0 * factor, b=2.0))
    assert not unseeing(spoiled)(scalars(a=2.0, b=bad)).isfinite()
    spared(scalars(a=2.0))
    for _ in range(3):
        assert spoiled(scalars(a=1.0, b=1.5)) == spared(scalars(a=1.0, b=1.5))


def test_zeros_in_a_history() -> None:
    dwa = w.DWA(1)
    for value in (1.0, 0.0, 0.0, 3.0):  # a mean of zero, then ratios of zero to zero and of 3 to zero
        assert dwa(scalars(a=2.0, b=value)).isfinite()
    assert dwa(scalars(a=2.0, b=1.0)) == 3.0  # both have the rate 1
    relobralo = w.ReLoBRaLo(0.0, 1.0)
    for value in (0.0, 4.0, 0.0):
        relobralo(scalars(a=1.0, b=value))
    assert relobralo.first.tolist() == relobralo.last.tolist() == [1.0, 4.0]
    weights = torch.softmax(torch.tensor([1.0, 0.5]), 0) * 2
    torch.testing.assert_close(relobralo(scalars(a=1.0, b=2.0)).detach(), weights @ torch.tensor([1.0, 2.0]))
    softadapt = w.SoftAdapt(loss_weighted=True)
    assert softadapt(scalars(a=0.0, b=0.0)) == 0
    assert softadapt(scalars(a=0.0, b=2.0)) == 2.0  # its weight is 1


@pytest.mark.parametrize("make", HISTORIES)
def test_extreme_ratios_stay_finite(make: Any) -> None:
    weighting = make()
    for value in (1e-37, 1e37, 1e-37, 1e37):
        assert weighting(scalars(a=value, b=1e38 - value)).isfinite()


def test_a_negative_loss_that_cannot_be_seen() -> None:
    measured: list[w.DWA | w.ReLoBRaLo] = [w.DWA(1), w.ReLoBRaLo(seed=0)]
    for weighting in measured:
        weighting(scalars(a=1.0, b=4.0))
        assert unseeing(weighting)(scalars(a=1.0, b=-4.0)).isfinite()
        assert weighting.last.tolist() == [1.0, 4.0]
    losses = scalars(a=1.0, b=-4.0)
    unseeing(w.SoftAdapt(loss_weighted=True))(losses).backward()
    assert [loss.grad.item() for loss in losses.values() if loss.grad is not None] == [1.0, 0.0]


def test_weightings_read_nothing_on_a_device() -> None:
    """On the meta device, where tensors have no values, reading one is an error."""
    two = ["a", "b"]
    made: list[w.Weighting] = [make() for make in HISTORIES]
    made += [w.EqualWeights(), w.RealTimeLoss(), w.InitialLoss(2), w.PriorLoss([1.0, 3.0])]
    made += [w.Uncertainty(two), w.KendallUncertainty(two, ["regression"] * 2), w.IMTLL(two)]
    made += [w.STCH(1.0, ideal={"a": -1.0, "b": 2.0}, priorities={"a": 1.0, "b": 3.0}), w.GeometricMean()]
    made += [w.RandomWeighting()]
    for weighting in made:
        weighting.to("meta")
        terms = weighting.terms or ("a", "b")
        losses = {term: torch.empty((), device="meta", requires_grad=True) for term in terms}
        for given in (losses, {terms[1]: losses[terms[1]]}, losses):
            total = weighting(given)
            total.backward()
            assert total.device.type == "meta"
    with pytest.raises(RuntimeError):
        total.item()


@pytest.mark.parametrize("s", [LARGEST_LOG_SCALE + 1, 1000.0])
def test_log_scale_comes_back(s: float) -> None:
    weighting = w.IMTLL(["a"])
    weighting.log_scale.data.fill_(s)
    largest = math.exp(LARGEST_LOG_SCALE)
    total = weighting(scalars(a=2.0))
    total.backward()
    assert total.item() == pytest.approx(2.0 * largest, rel=1e-5)
    assert weighting.log_scale.grad is not None
    assert weighting.log_scale.grad.item() == pytest.approx(2.0 * largest, rel=1e-5)
    weighting.log_scale.grad = None
    weighting(scalars(a=0.0)).backward()
    assert weighting.log_scale.grad == 0


@pytest.mark.parametrize("p", [0.0, -0.0, SMALLEST_P / 3, -SMALLEST_P / 3])
def test_p_comes_back_from_the_singularity(p: float) -> None:
    weighting = w.Uncertainty(["a"])
    weighting.p.data.fill_(p)
    losses = scalars(a=2.0)
    total = weighting(losses)
    total.backward()
    side = math.copysign(1.0, p)
    assert total.item() == pytest.approx(0.5 / SMALLEST_P**2 * 2.0, rel=1e-5)
    assert losses["a"].grad is not None
    assert losses["a"].grad.item() == pytest.approx(0.5 / SMALLEST_P**2, rel=1e-5)
    assert weighting.p.grad is not None
    assert weighting.p.grad.item() == pytest.approx(-2.0 * side / SMALLEST_P**3, rel=1e-5)  # away from 0
    weighting.p.grad = None
    total = weighting(scalars(a=0.0))
    total.backward()
    assert total.isfinite()
    assert weighting.p.grad == 0  # nothing pulls it on


@pytest.mark.parametrize("s", [SMALLEST_LOG_VARIANCE - 1, -1000.0])
def test_log_variance_comes_back(s: float) -> None:
    weighting = w.KendallUncertainty(["a"], ["classification"])
    weighting.log_variance.data.fill_(s)
    largest = math.exp(-SMALLEST_LOG_VARIANCE)
    total = weighting(scalars(a=2.0))
    total.backward()
    assert total.item() == pytest.approx(2.0 * largest, rel=1e-5)
    assert weighting.log_variance.grad is not None
    assert weighting.log_variance.grad.item() == pytest.approx(-2.0 * largest, rel=1e-5)
    weighting.log_variance.grad = None
    weighting(scalars(a=0.0)).backward()
    assert weighting.log_variance.grad == 0


def test_losses_at_zero_for_long_stay_finite() -> None:
    for weighting in (w.Uncertainty(["a"]), w.KendallUncertainty(["a"], ["regression"]), w.IMTLL(["a"])):
        (parameter,) = weighting.parameters()
        optimizer = torch.optim.SGD([parameter], lr=0.9)
        for _ in range(200):
            optimizer.zero_grad()
            total = weighting(scalars(a=0.0))
            total.backward()
            optimizer.step()
            assert total.isfinite()
            assert parameter.isfinite().all()


# -- losses known without training -------------------------------------------------------------------------------------


def test_losses_of_classes() -> None:
    labels = torch.tensor([[0, 2, 2], [1, 2, 4]])
    counts = np.array([1, 1, 3, 0, 1])
    entropy = scipy.stats.entropy(counts)
    assert w.class_prior_loss(labels) == pytest.approx(entropy, rel=1e-12)
    assert w.class_prior_loss(frequencies=counts.tolist()) == pytest.approx(entropy, rel=1e-12)
    assert w.class_prior_loss(frequencies=torch.from_numpy(counts / 6)) == pytest.approx(entropy, rel=1e-12)
    assert w.class_prior_loss(labels[labels == 2]) == 0
    flat = labels.flatten()
    logits = torch.log(torch.tensor(counts / 6, dtype=torch.float64)).expand(6, 5)
    assert functional.cross_entropy(logits, flat).item() == pytest.approx(entropy, rel=1e-12)
    zero = functional.cross_entropy(torch.zeros(6, 5, dtype=torch.float64), flat).item()
    assert w.initial_class_loss(5) == pytest.approx(zero, rel=1e-12)
    assert w.initial_class_loss(2) != pytest.approx(zero, rel=0.1)


@pytest.mark.parametrize("shape", [(50,), (50, 3), (50, 2, 2)])
def test_losses_of_regression(shape: tuple[int, ...]) -> None:
    y = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2
    rows = y.double().numpy().reshape(50, -1)
    components = rows.shape[1]
    assert w.initial_regression_loss(y) == pytest.approx((rows**2).sum() / 50, rel=1e-12)
    assert w.regression_prior_loss(y) == pytest.approx(rows.var(axis=0).sum(), rel=1e-12)
    mse = functional.mse_loss(torch.zeros(shape), y).item()
    assert w.initial_regression_loss(y) / components == pytest.approx(mse, rel=1e-5)
    assert w.regression_prior_loss(y) != pytest.approx(w.initial_regression_loss(y), rel=0.1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: w.initial_class_loss(1), ValueError, "num_classes is 1; it must be a whole number of at least 2"),
        (lambda: w.initial_class_loss(2.0), ValueError, "num_classes is 2.0"),  # type: ignore[arg-type]
        (lambda: w.initial_regression_loss(torch.tensor(1.0)), ValueError, r"targets has shape \(\)"),
        (lambda: w.regression_prior_loss(torch.ones(0, 3)), ValueError, r"targets has shape \(0, 3\)"),
        (lambda: w.regression_prior_loss(torch.tensor([1.0, math.nan])), ValueError, "not finite"),
        (lambda: w.initial_regression_loss([1.0]), TypeError, "targets is a list"),  # type: ignore[arg-type]
        (lambda: w.class_prior_loss(), TypeError, "give either labels or frequencies"),
        (lambda: w.class_prior_loss(torch.ones(3)), TypeError, "labels is torch.float32; .* frequencies="),
        (lambda: w.class_prior_loss(torch.tensor([0, -100])), ValueError, "or negative ones; leave out"),
        (lambda: w.class_prior_loss(frequencies=[0.0, 0.0]), ValueError, "frequencies is .* not all zero"),
        (lambda: w.class_prior_loss(frequencies=[1.0, -1.0]), ValueError, "frequencies is"),
    ],
)
def test_bad_targets(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
