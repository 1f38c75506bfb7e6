"""Whole training steps of small models: what balancing the losses costs beside Adam on their sum."""

import pytest

from bench.harness.suite import CLOCK, Outcome, Suite
from bench.harness.training import Maker, measure_training
from bench.peers.training import make_adam_on_sum, make_mtadam, make_published

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "train"
CASES = QUICK_CASES = ("digit_classes", "diabetes_quantiles", "super_resolution")  # of tasks.TASKS


MAKERS: dict[str, Maker] = {"mtadam": make_mtadam, "published": make_published, "adam-on-sum": make_adam_on_sum}


@pytest.mark.parametrize("contender", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_train(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_case)


def measure_case(name: str, suite: Suite) -> Outcome:
    """Measure a case; see ``measure_training``."""
    return measure_training(name, suite, MAKERS, {}, group=GROUP)
