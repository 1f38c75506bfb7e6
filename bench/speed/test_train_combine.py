"""Whole training steps of small models with PCGrad: CombinedAdam beside TorchJD, and Adam on the sum of the losses."""

from importlib.util import find_spec

import pytest

from bench.harness.suite import CLOCK, Outcome, Suite
from bench.harness.training import Maker, measure_training
from bench.peers.torchjd import NO_TORCHJD
from bench.peers.training import TRAINED_RULE, make_adam_on_sum, make_combined, make_torchjd
from bench.speed.test_train import CASES

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "train-combine"
QUICK_CASES = ("diabetes_quantiles",)


MAKERS: dict[str, Maker] = {"combined": make_combined, "torchjd": make_torchjd, "adam-on-sum": make_adam_on_sum}


@pytest.mark.parametrize("contender", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_train_combine(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_case)


def measure_case(name: str, suite: Suite) -> Outcome:
    """Measure a case; see ``measure_training``."""
    makers, left_out = MAKERS, {}
    if find_spec("torchjd") is None:
        makers, left_out = {name: maker for name, maker in MAKERS.items() if name != "torchjd"}, {"torchjd": NO_TORCHJD}
    return measure_training(name, suite, makers, left_out, group=GROUP, rule=TRAINED_RULE)
