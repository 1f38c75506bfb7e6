"""Rules wait for no device: on the meta device, where tensors have no values, reading one is an error."""

import pytest
import torch

from mtadam_fused.rules import IMTLG, MGDA, FixedWeights, GradientNormalization, GradNorm, PCGrad, Rule
from tests.support.rules import ON_GRAM

RULES_ON_GRAM = [IMTLG(normalized=True), *(make() for make in ON_GRAM.values())]

RULES = [
    FixedWeights(),
    PCGrad(),
    PCGrad("mean"),
    MGDA(),
    MGDA("loss+"),
    GradNorm(),
    GradientNormalization(),
    GradientNormalization(1.0),
    GradientNormalization(anchor=0, ema=0.9, every=2, clamp=(0, 10)),
    GradientNormalization(anchor="mean"),
    *RULES_ON_GRAM,
]


def weigh(rule: Rule, terms: int) -> torch.Tensor:
    rule.check_terms(list(range(terms)), allow_more=False)
    gram = torch.empty(terms, terms, dtype=torch.float64, device="meta")
    return rule(gram, torch.empty(terms, dtype=torch.float64, device="meta"))


@pytest.mark.parametrize("terms", [1, 8])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_up_to_eight_terms_nothing_is_read(rule: Rule, terms: int) -> None:
    for _ in range(2):
        weights = weigh(rule, terms)
        assert (weights.shape, weights.device.type) == ((terms,), "meta")


@pytest.mark.parametrize("rule", [MGDA(), *RULES_ON_GRAM], ids=repr)
def test_a_read_is_seen(rule: Rule) -> None:
    with pytest.raises(NotImplementedError, match="meta"):
        weigh(rule, 9)  # of more than eight terms, solved on the host
