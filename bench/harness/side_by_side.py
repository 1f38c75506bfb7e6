"""Measure one step of several contenders, side by side."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bench.harness.agreement import Start, check_contenders
from bench.harness.devices import Device
from bench.harness.measure import Contender, Failure, LeftOutError, summarize_error, take_turns
from bench.harness.records import make_records
from bench.harness.suite import Outcome, Suite
from bench.workloads.shapes import GPU_ONLY, Case, Grads, count_elements

PAIRS_A_SECOND = 2.5  # of a tensor and a term: what torch.compile manages on one core


@dataclass(frozen=True)
class Peer:
    """A contender that can be made for a case."""

    make: Callable[[Case, Device, Grads], Contender]
    floats: Callable[[int], int]  # kept by K terms and by its step's temporaries, in elements per parameter element
    slow: bool = False  # loops over tensors and terms, with many passes over memory
    compiled: bool = False


def make_contenders(
    case: Case, device: Device, peers: Mapping[str, Peer], share: float = 1.0
) -> tuple[Grads, list[Contender], dict[str, str]]:
    """Make the gradients of a case, the contenders to step with them, and the reasons to leave out the others.

    Args:
        share: of the device's limits for slow contenders.
    """
    size = count_elements([torch.empty(shape, device="meta") for shape in case.shapes])
    room = 0.8 * device.free() - 4 * size * case.terms  # what the gradients leave
    if case.workload in GPU_ONLY and device.torch_device.type == "cpu":
        return [], [], dict.fromkeys(peers, "on a GPU only")
    left_out: dict[str, str] = {}
    contenders: list[Contender] = []
    grads = case.grads(device.torch_device) if room > 0 else []
    for name, peer in peers.items():
        needed = 4 * size * peer.floats(case.terms)
        try:
            if needed > room:
                raise LeftOutError(f"needs {needed / 1e9:.0f} GB beside the others: more than are free")
            if peer.slow and size * case.terms > share * device.slow_limit:
                raise LeftOutError("too slow here for so many elements and terms")
            if peer.slow and len(case.shapes) * case.terms > share * device.loop_limit:
                raise LeftOutError("too slow here for so many tensors and terms")
            if peer.compiled and len(case.shapes) * case.terms > share * PAIRS_A_SECOND * device.compile_seconds:
                raise LeftOutError("compiling so many tensors and terms takes too long (see --compile-seconds)")
            contenders.append(peer.make(case, device, grads))
            room -= needed
        except LeftOutError as error:
            left_out[name] = str(error)
        except Exception as error:  # whatever a compiler or the device raises
            left_out[name] = Failure(f"FAILED: {summarize_error(error)}")
    return grads, contenders, left_out


def make_checked_contenders(
    case: Case, suite: Suite, peers: Mapping[str, Peer]
) -> tuple[Grads, list[Contender], dict[str, str]]:
    """Make the contenders of a case, and leave out those that do not make the update that they should."""
    gc.collect()  # the last case's tensors
    grads, contenders, left_out = make_contenders(case, suite.device, peers, suite.budget.share)
    if not contenders:
        return grads, [], left_out
    right, wrong = check_contenders(contenders, Start.copy_of(case.params(suite.device.torch_device), grads))
    return grads, right, left_out | wrong


def measure_steps(cases: Mapping[str, Case], group: str, peers: Mapping[str, Peer], name: str, suite: Suite) -> Outcome:
    """Check that the contenders of the case called ``name`` make the right update, then time them in turns."""
    case = cases[name]
    grads, contenders, left_out = make_checked_contenders(case, suite, peers)
    if not contenders:
        return Outcome(left_out=left_out)
    times = take_turns(suite.device, contenders, suite.budget)
    records = make_records(
        times,
        {contender.name: contender.bytes_moved for contender in contenders},
        group=group,
        workload=case.workload,
        parameters=count_elements(grads[0]),
        tensors=len(grads[0]),
        terms=case.terms,
        rule=case.rule,
        dtype=str(case.dtype).removeprefix("torch."),
    )
    return Outcome(records, times.samples, left_out)
