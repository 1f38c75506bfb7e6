"""The measuring of one step by several contenders."""

import gc
from collections.abc import Mapping

from bench.harness.agreement import Start, agreeing
from bench.harness.measure import Contender, take_turns
from bench.harness.records import make_records
from bench.harness.suite import Outcome, Suite
from bench.peers.ours import Peer, make_contenders
from bench.workloads.shapes import Case, Grads, elements


def line_up(case: Case, suite: Suite, peers: Mapping[str, Peer]) -> tuple[Grads, list[Contender], dict[str, str]]:
    """The gradients of a case, the contenders that make the update they should with them, and why the others do not."""
    gc.collect()  # the last case's tensors
    grads, contenders, left_out = make_contenders(case, suite.device, peers, suite.budget.share)
    if not contenders:
        return grads, [], left_out
    right, wrong = agreeing(contenders, Start.of(case.params(suite.device.place), grads))
    return grads, right, left_out | wrong


def measure_steps(case: Case, suite: Suite, group: str, peers: Mapping[str, Peer]) -> Outcome:
    """Checks that the contenders make the update they should, then times them in turns."""
    grads, contenders, left_out = line_up(case, suite, peers)
    if not contenders:
        return Outcome(left_out=left_out)
    times = take_turns(suite.device, contenders, suite.budget)
    records = make_records(
        times,
        {contender.name: contender.bytes_moved for contender in contenders},
        group=group,
        workload=case.workload,
        parameters=elements(grads[0]),
        tensors=len(grads[0]),
        terms=case.terms,
        rule=case.rule,
        dtype=str(case.dtype).removeprefix("torch."),
    )
    return Outcome(records, times.samples, left_out)
