"""Bytes of state, and by how much a step raises the peak of memory, beside the byte model."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from bench.harness import byte_model
from bench.harness.devices import Device
from bench.harness.measure import Budget, Contender, iter_tensors, take_turns
from bench.harness.records import make_records
from bench.harness.side_by_side import make_checked_contenders
from bench.harness.suite import CLOCK, Outcome, Suite
from bench.peers.catalog import COMBINE_PEERS, STEP_PEERS
from bench.peers.ours import ONE_LAUNCH
from bench.peers.torchjd import make_torchjd
from bench.workloads.shapes import Case, Grads, count_elements

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "memory"
CASES = {str(case): case for case in (Case("resnet50", terms) for terms in (2, 4, 10))}
QUICK_CASES = ["resnet50-K4"]
TURNS = Budget(least=3, most=3, seconds=0)
WITHOUT = ("copy", "compiled")
RULE = "PCGrad"  # of the contenders that have one


Make = Callable[[Case, Device, Grads], Contender]


def with_rule(make: Make) -> Make:
    """Return the making of a contender whose weights a rule finds.

    Its update is not compared: in these gradients, which the others need, Adam's first step shows only signs. The group
    "combine" compares it.
    """
    return lambda case, device, grads: replace(make(replace(case, rule=RULE), device, grads), oracle=None)


MAKE_WITH_RULE: dict[str, Make] = {
    "combined-cpu": COMBINE_PEERS["combined-cpu"].make,
    **{name: partial(make_torchjd, name, frees=True) for name in ("torchjd", "torchjd-layerwise")},
}
COMPARED = {
    **{
        name: replace(peer, slow=False)  # a few turns of any do not take long
        for name, peer in STEP_PEERS.items()
        if name not in WITHOUT and not name.endswith(("-graph", ONE_LAUNCH))
    },
    **{name: replace(COMBINE_PEERS[name], make=with_rule(make)) for name, make in MAKE_WITH_RULE.items()},
}


@pytest.mark.parametrize("contender", COMPARED)
@pytest.mark.parametrize("case", CASES)
def test_memory(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_memory)


def measure_memory(name: str, suite: Suite) -> Outcome:
    """Measure the state after a step, and the memory that a further step takes."""
    case = CASES[name]
    grads, contenders, left_out = make_checked_contenders(case, suite, COMPARED)
    if not contenders:
        return Outcome(left_out=left_out)
    count = count_elements(grads[0])
    sizes: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        contender.prepare()
        peak = suite.device.peak(contender.run)
        sizes[contender.name] = {
            "state_bytes": state_bytes(contender) / count,
            "peak_bytes": None if peak is None else peak / count,
            "model_state_bytes": model_state_bytes(contender.name, case),
            "rule": RULE if contender.name in MAKE_WITH_RULE else "",
        }
    times = take_turns(suite.device, contenders, TURNS)
    records = make_records(
        times,
        {contender.name: contender.bytes_moved for contender in contenders},
        group=GROUP,
        workload=case.workload,
        parameters=count,
        tensors=len(grads[0]),
        terms=case.terms,
        dtype="float32",
    )
    return Outcome({name: replace(record, **sizes[name]) for name, record in records.items()}, times.samples, left_out)


def model_state_bytes(name: str, case: Case) -> int:
    """Return what the byte model says of a contender's state."""
    if name == "published":
        return byte_model.published_state(case.terms)
    if name.startswith("balanced"):
        return byte_model.balanced_state()
    return byte_model.mtadam_state(case.terms) if name.startswith("mtadam") else byte_model.adam_state(case.element)


def state_bytes(contender: Contender) -> int:
    """Return the bytes of the tensors in the contender's state, each storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in iter_tensors(contender.state)}
    return sum(storages.values())
