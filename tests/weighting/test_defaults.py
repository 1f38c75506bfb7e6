"""Weightings under torch's defaults for device and dtype, which a user may have set."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mtadam_fused import weighting as w
from mtadam_fused.rules import FixedWeights
from tests.support.defaults import unusual_defaults
from tests.weighting.losses import TERMS, leaves

MADE_ANYWHERE: dict[str, Callable[[], w.Weighting]] = {
    **{"equal": w.EqualWeights, "real-time": w.RealTimeLoss, "geometric": w.GeometricMean, "stch": lambda: w.STCH(2.0)},
    **{"initial": w.InitialLoss, "given": lambda: w.InitialLoss(values={"a": 1.1, "b": 2.2, "c": 3.3})},
    **{"dwa": lambda: w.DWA(1), "softadapt": w.SoftAdapt, "relobralo": w.ReLoBRaLo, "random": w.RandomWeighting},
    "rule": lambda: w.RuleWeighting(FixedWeights([1.1, 2.2, 3.3])),
}
# Their parameters are made on the default device, as those of every module.
LEARNED: dict[str, Callable[[], w.Weighting]] = {
    "uncertainty": lambda: w.Uncertainty(TERMS),
    "kendall": lambda: w.KendallUncertainty(TERMS, ["regression", "classification", "regression"]),
    "imtll": lambda: w.IMTLL(TERMS),
}


def totals(weighting: w.Weighting, losses: list[dict[str, Tensor]]) -> list[float]:
    return [weighting(of_call).item() for of_call in losses]


@pytest.mark.parametrize("name", [*MADE_ANYWHERE, *LEARNED])
def test_defaults_do_not_matter(name: str) -> None:
    losses = [leaves(np.array(values)) for values in ([3.3, 7.7, 0.2], [2.2, 6.6, 0.4], [1.1, 6.1, 0.1])]
    make = {**MADE_ANYWHERE, **LEARNED}[name]
    torch.manual_seed(0)
    expected = totals(make(), losses)
    learned = make()
    torch.manual_seed(0)
    with unusual_defaults():
        assert totals(learned if name in LEARNED else make(), losses) == expected


@pytest.mark.parametrize("name", LEARNED)
def test_parameters_made_on_the_meta_device_are_loaded(name: str) -> None:
    losses, weighting = leaves(), LEARNED[name]()
    with torch.device("meta"):
        other = LEARNED[name]()
    other.to_empty(device="cpu").load_state_dict(weighting.state_dict())
    assert other(losses).item() == weighting(losses).item()


def test_prior_losses_do_not_depend_on_defaults() -> None:
    labels, targets = torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.7])

    def found() -> list[float]:
        return [
            w.class_prior_loss(labels),
            w.class_prior_loss(frequencies=[0.3, 0.7]),
            w.class_prior_loss(frequencies=torch.bincount(labels)),
            w.regression_prior_loss(targets),
            w.initial_class_loss(10),
            w.initial_regression_loss(targets),
        ]

    expected = found()
    with unusual_defaults():
        assert found() == expected
