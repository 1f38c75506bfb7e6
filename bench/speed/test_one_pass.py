"""Time and peak memory of whole training steps with a rule, on a large trunk that eight heads share."""

from dataclasses import replace
from functools import partial

import pytest

from bench.harness.measure import take_turns
from bench.harness.records import make_records
from bench.harness.suite import CLOCK, Outcome, Suite
from bench.peers.one_pass import MAKERS, make_all
from bench.workloads.shapes import count_elements
from bench.workloads.trunk import TERMS, make_trunk

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "one-pass"
CASES = ("MGDA", "PCGrad", "UPGrad")  # rules
QUICK_CASES = ("MGDA",)


@pytest.mark.parametrize("contender", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_one_pass(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_case)


def measure_case(rule: str, suite: Suite) -> Outcome:
    """Time whole steps in turns, and measure what a step allocates beyond parameters, state and gradients."""
    make = partial(make_trunk, suite.device.torch_device)
    contenders, left_out = make_all(rule, make)
    times = take_turns(suite.device, contenders, suite.budget)
    count = count_elements(make().params)
    peaks = {contender.name: suite.device.peak(contender.run) for contender in contenders}
    records = make_records(
        times,
        dict.fromkeys(times.samples),
        group=GROUP,
        workload="shared_trunk",
        parameters=count,
        tensors=len(make().params),
        terms=TERMS,
        dtype="float32",
        rule=rule,
    )
    sized = {
        name: replace(record, peak_bytes=None if (peak := peaks[name]) is None else peak / count)
        for name, record in records.items()
    }
    return Outcome(sized, times.samples, left_out)
