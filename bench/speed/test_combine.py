"""The step of rules, gradients ready: CombinedAdam beside TorchJD and torch.optim.Adam."""

from importlib.util import find_spec

import pytest

from bench.harness.side_by_side import measure_steps
from bench.harness.suite import CLOCK, Outcome, Suite
from bench.peers.catalog import COMBINE_PEERS
from bench.peers.rules import RULES
from bench.workloads.shapes import Case

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "combine"
QUICK_CASES = ["mnist-K2-PCGrad"]
_CASES = [Case("mnist", 2, rule="PCGrad")]
_CASES += [
    Case(workload, terms, rule=rule)
    for workload, terms in (("resnet50", 2), ("resnet50", 4), ("equal_20m", 4))
    for rule in RULES
]
_CASES += [Case("resnet50", 10, rule="PCGrad")]
CASES = {str(case): case for case in _CASES}


@pytest.mark.parametrize("contender", COMBINE_PEERS)
@pytest.mark.parametrize("case", CASES)
def test_combine(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_combine)


def measure_combine(name: str, suite: Suite) -> Outcome:
    """Measure a case; see ``measure_steps``."""
    if CASES[name].rule == "MGDA" and find_spec("scipy") is None:
        return Outcome(
            left_out=dict.fromkeys(COMBINE_PEERS, "SciPy, which finds the weights to compare with, is missing")
        )
    return measure_steps(CASES, GROUP, COMBINE_PEERS, name, suite)
