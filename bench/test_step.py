"""The optimizer's step alone, gradients ready: MTAdam on each backend beside its peers."""

import gc

import pytest
import torch
from agreement import Start, check_first_run
from contenders import PEERS, make_contenders
from measure import take_turns
from records import make_records
from suite import CLOCK, Outcome, Suite
from workloads import WORKLOADS, Case, elements

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "step"
TERMS = (2, 4, 10)
_CASES = [Case(workload, terms) for workload in WORKLOADS for terms in TERMS]
_CASES += [Case("bert_base", terms, torch.bfloat16) for terms in TERMS]
CASES = {str(case): case for case in _CASES}
QUICK_CASES = [name for name, case in CASES.items() if case.workload in ("mnist", "srresnet", "resnet50", "tiny_1000")]


@pytest.mark.parametrize("contender", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_step(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_step)


def measure_step(name: str, suite: Suite) -> Outcome:
    """Checks that the contenders make the update they should, then times them in turns."""
    case = CASES[name]
    gc.collect()  # the last case's tensors
    grads, contenders, left_out = make_contenders(case, suite.device, share=suite.budget.share)
    if not contenders:
        return Outcome(left_out=left_out)
    start = Start.of(case.params(suite.device.place), grads)
    for contender in contenders:
        check_first_run(contender, start)
    times = take_turns(suite.device, contenders, suite.budget)
    records = make_records(
        times,
        {contender.name: contender.bytes_moved for contender in contenders},
        group=GROUP,
        workload=case.workload,
        parameters=elements(grads[0]),
        tensors=len(grads[0]),
        terms=case.terms,
        dtype=str(case.dtype).removeprefix("torch."),
    )
    return Outcome(records, times.samples, left_out)
