"""What comes before a step: taking the gradients of K terms out of ``p.grad``, beside setting ``p.grad`` alone.

A step of K Adams is timed with setting ``p.grad`` in it, for it has to; ours is timed without taking the gradients.
"""

from functools import partial

import pytest

from bench.harness.side_by_side import measure_steps
from bench.harness.suite import CLOCK, Suite
from bench.peers.catalog import GRADIENT_PEERS
from bench.workloads.shapes import Case

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "gradients"
_CASES = [Case(workload, 4) for workload in ("mnist", "resnet50", "small_300", "tiny_1000")]
CASES = {str(case): case for case in _CASES}
MEASURE = partial(measure_steps, CASES, GROUP, GRADIENT_PEERS)
QUICK_CASES = ["tiny_1000-K4"]


@pytest.mark.parametrize("contender", GRADIENT_PEERS)
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, MEASURE)
