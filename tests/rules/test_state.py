"""The state of rules: what is saved is all of it, and stays where CUDA graphs look for it."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtadam_fused import rules
from mtadam_fused.rules import MGDA, PCD, FairGrad, FixedWeights, GradientNormalization, GradNorm, PCGrad, Rule
from tests.rules.gradients import conflicting, gram_of
from tests.support.defaults import unusual_defaults
from tests.support.interrupts import Interrupter
from tests.support.rules import ON_GRAM

MAKERS: dict[str, Callable[[], Rule]] = {
    "fixed": lambda: FixedWeights([1.0, 2.0, 3.0]),
    "normalization": lambda: GradientNormalization(alpha=0.5),
    "GradNorm": lambda: GradNorm(alpha=0.5, lr=1e-3),
    "PCGrad": lambda: PCGrad("mean"),  # each with a seed of its own
    "MGDA": lambda: MGDA("loss+"),
    "anchored": lambda: GradientNormalization(anchor="b", ema=0.5, every=3),
    "PCD": lambda: PCD("b", beta=0.5),
    "preferred": lambda: FairGrad(preference={"a": 1.0, "b": 2.0, "c": 3.0}),
}
every_rule = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def weigh(rule: Rule, step: int) -> Tensor:
    """Return the rule's weights of three terms at a step, whose losses change at rates of their own."""
    rule.check_terms("abc", allow_more=False)
    losses = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64) * torch.tensor([0.9, 0.5, 1.1]) ** step
    return rule(gram_of(conflicting(3)), losses).clone()


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


@every_rule
def test_a_rule_with_loaded_state_goes_on_alike(make: Callable[[], Rule]) -> None:
    first, second = make(), make()
    for step in range(4):
        weigh(first, step)
    saved = copy.deepcopy(first.state_dict())
    second.load_state_dict(copy.deepcopy(saved))
    torch.testing.assert_close(second.state_dict(), saved, rtol=0, atol=0)
    for step in range(4, 8):
        assert torch.equal(weigh(second, step), weigh(first, step))


@every_rule
def test_state_stays_in_its_memory(make: Callable[[], Rule]) -> None:
    rule = make()
    weigh(rule, 0)
    before = {name: value.data_ptr() for name, value in tensors(rule.state_dict()).items()}
    for step in range(1, 4):
        weigh(rule, step)
    assert {name: value.data_ptr() for name, value in tensors(rule.state_dict()).items()} == before


@every_rule
def test_a_loaded_state_is_copied(make: Callable[[], Rule]) -> None:
    """Neither does the rule change the given state, nor do later changes of that reach the rule."""
    first, second = make(), make()
    weigh(first, 0)
    given = copy.deepcopy(first.state_dict())
    saved = copy.deepcopy(given)
    second.load_state_dict(given)
    for step in range(1, 4):
        weigh(second, step)
    torch.testing.assert_close(given, saved, rtol=0, atol=0)
    second.load_state_dict(given)
    for value in tensors(given).values():
        value += 1
    torch.testing.assert_close(second.state_dict(), saved, rtol=0, atol=0)


FEW_AND_MANY = [*((make, 3) for make in MAKERS.values()), *((make, 9) for make in ON_GRAM.values())]


@pytest.mark.parametrize(("make", "terms"), FEW_AND_MANY, ids=[*MAKERS, *ON_GRAM])
def test_the_defaults_of_torch_do_not_matter(make: Callable[[], Rule], terms: int) -> None:
    gram, losses = gram_of(conflicting(terms)), torch.linspace(1.0, 2.0, terms, dtype=torch.float64)

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        rule = make()
        rule.check_terms("abcdefghi"[:terms], allow_more=False)
        return [rule(gram, losses / step).clone() for step in (1, 2, 3)]

    expected = run()
    with unusual_defaults():
        found = run()
    assert all(map(torch.equal, found, expected))


def test_interrupted_weights_are_looked_up_again() -> None:
    losses = torch.ones(3)
    for line in range(1, 100):
        rule = FixedWeights([1.0, 2.0, 3.0])
        rule.check_terms("abc", allow_more=False)
        interrupter = Interrupter(line)
        with contextlib.suppress(KeyboardInterrupt), interrupter:
            rule(torch.zeros(3, 3), losses)
        assert rule(torch.zeros(3, 3), losses).tolist() == [1.0, 2.0, 3.0]
        if interrupter.where is None:
            break
    assert 4 < line < 99


@pytest.mark.parametrize(
    "rule",
    [
        *("FixedWeights([1.0, 2.0])", "GradientNormalization(alpha=0.5)", "GradNorm(alpha=0.5, lr=0.1)"),
        *("PCGrad(reduction='mean')", "MGDA(normalization='loss+')"),
        *("UPGrad()", "UPGrad(preference=[1.0, 2.0])", "ConFIG(normalized=True)", "IMTLG()", "AlignedMTL()"),
        *("CAGrad(c=0.4, preference={'a': 1.0}, normalized=True)", "FairGrad(alpha=3.0)", "NashMTL()"),
        "PCD(primary='a', tau=[0.0, 0.5], beta=0.9, eps=0.0)",
        "GradientNormalization(alpha=0.0, preference=[1.0, 2.0], anchor='a', ema=0.9, every=9, clamp=(0, 9), eps=0.1)",
    ],
)
def test_repr_makes_the_rule(rule: str) -> None:
    assert repr(eval(rule, vars(rules))) == rule
