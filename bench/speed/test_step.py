"""The optimizer's step alone, gradients ready: MTAdam on each backend beside its peers."""

from functools import partial

import pytest
import torch

from bench.harness.side_by_side import measure_steps
from bench.harness.suite import CLOCK, Suite
from bench.peers.catalog import STEP_PEERS
from bench.workloads.shapes import WORKLOADS, Case

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "step"
TERMS = (2, 4, 10)
ELSEWHERE = ("equal_20m", "equal_40", "one_20m")  # for other groups: equal_100m stands for them here
_CASES = [Case(workload, terms) for workload in WORKLOADS if workload not in ELSEWHERE for terms in TERMS]
_CASES += [Case("bert_base", terms, torch.bfloat16) for terms in TERMS]
CASES = {str(case): case for case in _CASES}
MEASURE = partial(measure_steps, CASES, GROUP, STEP_PEERS)
QUICK_CASES = ["resnet50-K4", "mnist-K10", "tiny_1000-K4", "mnist-K4", "srresnet-K4", "srresnet-K2", "resnet50-K2"]


@pytest.mark.parametrize("contender", STEP_PEERS)
@pytest.mark.parametrize("case", CASES)
def test_step(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, MEASURE)
