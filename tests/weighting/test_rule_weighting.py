"""RuleWeighting: a rule's weights from the gradients of a few tensors, then one backward pass."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import CombinedAdam
from mtadam_fused.rules import MGDA, FixedWeights, GradientNormalization, GradNorm, PCGrad, Rule
from mtadam_fused.weighting import RuleWeighting
from tests.support.shared_trunk import TERMS, Trunk

RULES: dict[str, Callable[[], Rule]] = {
    "fixed": lambda: FixedWeights([1.0, 0.5, 2.0]),
    "GradNorm": GradNorm,
    "normalization": GradientNormalization,
    "PCGrad": lambda: PCGrad(seed=3),
    "MGDA": lambda: MGDA("loss+"),
}


class Recorder(Rule):
    """Keep what the rule is given."""

    needs_losses = True

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.gram, self.losses = gram.clone(), losses.clone()
        return 1.0 + torch.arange(len(losses), dtype=torch.float64)


def gradients(loss: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, tensors, retain_graph=True)])


def gram_of(losses: dict[str, Tensor], tensors: Sequence[Tensor]) -> Tensor:
    rows = torch.stack([gradients(loss, tensors) for loss in losses.values()])
    return rows @ rows.T


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_the_rule_sees_of_parameters(backend: str) -> None:
    trunk, rule = Trunk(), Recorder()
    last = list(trunk.last.parameters())
    weighting = RuleWeighting(rule, last, backend=backend)
    losses = trunk.losses(trunk.features(0))
    total = weighting(losses)
    expected = gram_of(losses, last)
    torch.testing.assert_close(rule.gram, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(rule.losses, torch.stack(list(losses.values())).detach())
    torch.testing.assert_close(total, losses["a"] + 2 * losses["b"] + 3 * losses["c"])
    assert all(p.grad is None for p in trunk.parameters())
    assert not torch.allclose(rule.gram, gram_of(losses, [trunk.first.weight]))


def test_what_the_rule_sees_of_features() -> None:
    trunk, rule = Trunk(), Recorder()
    z = trunk.features(0)
    losses = trunk.losses(z)
    RuleWeighting(rule)(losses, features=z)
    torch.testing.assert_close(rule.gram, gram_of(losses, [z]), rtol=1e-12, atol=0)
    assert trunk.passes == 0  # only through the heads
    parts = z.unbind()
    joined = trunk.losses(torch.stack(parts))
    RuleWeighting(rule)(joined, features=parts)
    torch.testing.assert_close(rule.gram, gram_of(losses, [z]), rtol=1e-12, atol=0)


def test_features_come_before_parameters() -> None:
    trunk, rule = Trunk(), Recorder()
    z = trunk.features(0)
    losses = trunk.losses(z)
    RuleWeighting(rule, trunk.first.weight)(losses, features=[z])
    torch.testing.assert_close(rule.gram, gram_of(losses, [z]), rtol=1e-12, atol=0)


def test_a_term_that_does_not_reach_the_parameters_has_zeros() -> None:
    trunk, rule = Trunk(), Recorder()
    alone = nn.Parameter(torch.ones(2, dtype=torch.float64))
    losses = trunk.losses(trunk.features(0)) | {"b": alone.sum(), "c": torch.tensor(2.0, dtype=torch.float64)}
    RuleWeighting(rule, trunk.last.weight)(losses)
    assert rule.gram[0, 0] > 0
    assert rule.gram[1:].abs().max() == 0 == rule.gram[:, 1:].abs().max()


@pytest.mark.parametrize("name", RULES)
def test_same_training_as_combined_adam(name: str) -> None:
    trunk, other = Trunk(), Trunk()
    weighting = RuleWeighting(RULES[name](), trunk.last.parameters())
    adam = torch.optim.Adam(trunk.parameters(), lr=1e-2)

    def step(losses: dict[str, Tensor]) -> None:
        adam.zero_grad()
        weighting(losses).backward()
        adam.step()

    rule = RULES[name]()
    rule.parameters = list(other.last.parameters())
    combined = CombinedAdam(other.parameters(), rule, lr=1e-2, passes="per_term")

    def expected_step(losses: dict[str, Tensor]) -> None:
        combined.backward(losses)
        combined.step()

    terms = 3 if name == "fixed" else 2  # three have fixed weights
    for seed in range(5):
        step(trunk.losses(trunk.features(seed), TERMS[:terms]))
        expected_step(other.losses(other.features(seed), TERMS[:terms]))
    assert trunk.passes == 5
    for p, q in zip(trunk.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("times", [1.0, 1.0 + 1e-6])
def test_another_weight_is_seen(times: float) -> None:
    trunk = Trunk()
    losses = trunk.losses(trunk.features(0))
    weighting = RuleWeighting(GradientNormalization(), trunk.last.weight)
    total = weighting(losses)
    expected = sum(times * loss / gradients(loss, [trunk.last.weight]).norm() for loss in losses.values())
    assert torch.allclose(total, torch.as_tensor(expected), rtol=1e-9, atol=0) == (times == 1.0)


def test_weights_are_constants() -> None:
    trunk = Trunk()
    z = trunk.features(0)
    losses = trunk.losses(z)
    weighting = RuleWeighting(GradientNormalization())
    weighting(losses, features=z).backward(retain_graph=True)
    weights = weighting.last_weights()
    expected = sum(float(weights[term]) * loss for term, loss in losses.items())
    for p, g in zip(
        trunk.parameters(), torch.autograd.grad(torch.as_tensor(expected), trunk.parameters()), strict=True
    ):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)


def test_priorities() -> None:
    trunk = Trunk()
    losses = trunk.losses(trunk.features(0))
    plain, doubled = (
        RuleWeighting(FixedWeights(), priorities=priorities) for priorities in (None, {"a": 2.0, "b": 1.0, "c": 1.0})
    )
    torch.testing.assert_close(doubled(losses) - plain(losses), losses["a"])


def test_every() -> None:
    trunk, rule = Trunk(), Recorder()
    weighting = RuleWeighting(rule, trunk.last.weight, every=3)
    grams = []
    for seed in range(7):
        weighting(trunk.losses(trunk.features(seed)))
        grams.append(rule.gram)
    same = [torch.equal(a, b) for a, b in zip(grams[1:], grams, strict=False)]
    assert same == [True, True, False, True, True, False]


def test_weights_do_not_follow_a_rule_that_changes_its_own() -> None:
    trunk, rule = Trunk(), FixedWeights([1.0, 1.0, 1.0])
    weighting = RuleWeighting(rule, every=2)
    losses = trunk.losses(trunk.features(0))
    first = weighting(losses)
    rule(torch.empty(3, 3), torch.empty(3, dtype=torch.float64)).mul_(5.0)  # in place, as a rule changes its state
    assert torch.equal(weighting(losses), first)


def test_a_new_term_refreshes() -> None:
    trunk, rule = Trunk(), Recorder()
    weighting = RuleWeighting(rule, trunk.last.weight, every=100)
    weighting(trunk.losses(trunk.features(0), TERMS[:2]))
    weighting(trunk.losses(trunk.features(1), TERMS))
    assert rule.gram.shape == (3, 3)
    assert rule.gram.diagonal().gt(0).all()
    weighting(trunk.losses(trunk.features(2), TERMS[1:]))
    last = rule.gram
    assert set(weighting.last_weights()) == set(TERMS)
    weighting(trunk.losses(trunk.features(3), TERMS[:1]))
    assert rule.gram is last


def test_evaluation_uses_the_last_weights() -> None:
    trunk, rule = Trunk(), Recorder()
    weighting = RuleWeighting(rule, trunk.last.weight).eval()
    losses = trunk.losses(trunk.features(0))
    torch.testing.assert_close(weighting(losses), torch.stack(list(losses.values())).sum())
    weighting.train()(losses)
    weighting.eval()
    with torch.no_grad():
        plain = {term: loss.detach() for term, loss in losses.items()}
        torch.testing.assert_close(weighting(plain), losses["a"] + 2 * losses["b"] + 3 * losses["c"])


def test_state_goes_on() -> None:
    trunk = Trunk()
    first, second = (RuleWeighting(GradNorm(), trunk.last.weight, every=2) for _ in range(2))
    for seed in range(3):
        first(trunk.losses(trunk.features(seed)))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 8):
        losses = trunk.losses(trunk.features(seed))
        assert torch.equal(first(losses), second(losses))
    assert not torch.equal(first(losses), RuleWeighting(GradNorm(), trunk.last.weight)(losses))
    assert repr(first) == "RuleWeighting(GradNorm(alpha=1.5, lr=0.025), every=2)"


def test_loaded_weights_are_copied() -> None:
    """Later changes of the given state do not reach the weighting."""
    trunk = Trunk()
    first, second = (RuleWeighting(MGDA("loss+"), trunk.last.parameters()) for _ in range(2))
    first(trunk.losses(trunk.features(0)))
    given = copy.deepcopy(first.state_dict())
    second.load_state_dict(given)
    for weight in given["_extra_state"]["weights"].values():
        weight.zero_()
    assert second.last_weights() == first.last_weights()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_of_other_types(dtype: torch.dtype) -> None:
    trunk = Trunk(torch.float32)
    z = trunk.features(0)
    losses = {term: loss.to(dtype) for term, loss in trunk.losses(z).items()}
    total = RuleWeighting(GradientNormalization())(losses, features=z)
    assert total.dtype == torch.float32
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk.parameters())


def test_compiled_losses() -> None:
    trunk = Trunk(torch.float32)
    weighting = RuleWeighting(GradientNormalization(), trunk.last.weight)

    @torch.compile(backend="eager")
    def total() -> Tensor:
        return weighting(trunk.losses(trunk.features(0)))

    torch.testing.assert_close(total(), weighting(trunk.losses(trunk.features(0))))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rule": None}, TypeError, "rule is None"),
    ({"every": 0}, ValueError, "every is 0"),
    ({"parameters": []}, ValueError, "parameters is empty"),
    ({"parameters": nn.Linear(1, 1)}, TypeError, "parameters is a Linear; pass tensors, such as the parameters"),
    ({"parameters": 1.0}, TypeError, "parameters is a float; pass tensors"),
    ({"parameters": ["weight"]}, TypeError, r"parameters\[0\] is a str"),
    ({"parameters": [torch.ones(2)]}, ValueError, r"parameters\[0\] needs no gradient"),
    ({"priorities": {"a": -1.0}}, ValueError, "priorities"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RuleWeighting(**{"rule": PCGrad()} | arguments)


def test_bad_calls_change_nothing() -> None:
    trunk = Trunk()
    z = trunk.features(0)
    losses = trunk.losses(z)
    weighting = RuleWeighting(FixedWeights({"a": 1.0, "b": 1.0}))
    with pytest.raises(ValueError, match="unknown term 'c'"):
        weighting(losses)
    probing = RuleWeighting(PCGrad())
    with pytest.raises(ValueError, match="there are neither parameters nor features"):
        probing(losses)
    with pytest.raises(ValueError, match=r"features\[0\] has no graph"):
        probing(losses, features=z.detach())
    with pytest.raises(TypeError, match="pass a mapping"):
        probing(z.sum())
    assert weighting.last_weights() == probing.last_weights() == {}


def test_training_reaches_a_good_point() -> None:
    trunk = Trunk(torch.float32)
    weighting = RuleWeighting(MGDA("l2"))
    adam = torch.optim.Adam(trunk.parameters(), lr=3e-2)
    first: dict[str, float] = {}

    for seed in range(200):
        z = trunk.features(seed % 4)
        losses = trunk.losses(z)
        first = first or {term: loss.item() for term, loss in losses.items()}
        adam.zero_grad()
        weighting(losses, features=z).backward()
        adam.step()
    assert all(loss.item() < 0.1 * first[term] for term, loss in losses.items())
