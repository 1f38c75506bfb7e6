"""The step beside what memory allows: torch's fused Adam, a copy, and reading alone."""

from functools import partial

import pytest
import torch

from bench.harness.side_by_side import measure_steps
from bench.harness.suite import CLOCK, Suite
from bench.peers.catalog import LIMIT_PEERS
from bench.workloads.shapes import Case

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "limit"
TERMS = (2, 4, 10)
_CASES = [Case(workload, terms) for workload in ("equal_40", "one_20m", "mnist") for terms in TERMS]
_CASES += [Case("equal_40", terms, torch.bfloat16) for terms in TERMS]
CASES = {str(case): case for case in _CASES}
MEASURE = partial(measure_steps, CASES, GROUP, LIMIT_PEERS)
QUICK_CASES = ["mnist-K10"]


@pytest.mark.parametrize("contender", LIMIT_PEERS)
@pytest.mark.parametrize("case", CASES)
def test_limit(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, MEASURE)
