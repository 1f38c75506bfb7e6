"""Whole training steps of small models: what balancing the losses costs beside Adam on their sum."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from bench.harness.agreement import Start, adam, agreeing, mtadam
from bench.harness.devices import Device
from bench.harness.measure import Contender, take_turns
from bench.harness.records import make_records
from bench.harness.suite import CLOCK, Outcome, Suite
from bench.peers.ours import auto_backend
from bench.workloads.shapes import elements
from mtadam_fused import MTAdam
from oracles.published_loop import PublishedMTAdam

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "train"
CASES = QUICK_CASES = ("digit_classes", "diabetes_quantiles", "super_resolution")  # of tasks.TASKS
Losses = Callable[[], dict[str, Tensor]]
Maker = Callable[[list[Tensor], Losses, Device], Contender]


def make_mtadam(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Forward, a backward pass per term, our step."""
    optimizer = MTAdam(params, backend=auto_backend(device))

    def run() -> None:
        optimizer.zero_grad()
        optimizer.backward(losses())
        optimizer.step()

    return Contender("mtadam", run, params, oracle=mtadam)


def make_published(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Forward, a backward pass per term, the published loop."""
    loops: list[PublishedMTAdam] = []

    def run() -> None:
        grads = term_gradients(losses(), params)
        if not loops:
            loops.append(PublishedMTAdam([{"params": params}], terms=len(grads)))
        loops[0].step(grads)

    return Contender("published", run, params, oracle=mtadam)


def make_adam_on_sum(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Forward, a backward pass of the sum, Adam."""
    optimizer = torch.optim.Adam(params, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        torch.stack(list(losses().values())).sum().backward()
        optimizer.step()

    def oracle(params: list, grads: list[list[Tensor]]) -> None:
        adam(params, [[torch.stack(of_terms).sum(dim=0) for of_terms in zip(*grads, strict=True)]])

    return Contender("adam-on-sum", run, params, oracle=oracle)


MAKERS: dict[str, Maker] = {"mtadam": make_mtadam, "published": make_published, "adam-on-sum": make_adam_on_sum}


def term_gradients(losses: dict[str, Tensor], params: list[Tensor]) -> list[list[Tensor]]:
    """``[K][parameters]``."""
    return [list(torch.autograd.grad(loss, params, retain_graph=True)) for loss in losses.values()]


@contextmanager
def in_full_precision() -> Iterator[None]:
    """Without TensorFloat-32, to which cuDNN's convolutions round: Adam's first step makes much of a little."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.parametrize("contender", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_train(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_training)


def measure_training(name: str, suite: Suite) -> Outcome:
    """See ``measure_makers``."""
    return measure_makers(name, suite, MAKERS, {}, group=GROUP)


def measure_makers(
    name: str, suite: Suite, makers: Mapping[str, Maker], left_out: dict[str, str], **record: str
) -> Outcome:
    """Checks the first step of each contender, then times whole steps in turns, each on a network of its own."""
    if find_spec("sklearn") is None:
        missing = dict.fromkeys(makers, "scikit-learn, which has the data, is not installed")
        return Outcome(left_out=left_out | missing)
    from bench.workloads.tasks import TASKS

    def make() -> tuple[list[Tensor], Losses]:
        task = TASKS[name](suite.device.place)
        return list(task.network.parameters()), task.stream()

    params, losses = make()
    made = [maker(*make(), suite.device) for maker in makers.values()]
    with in_full_precision():
        grads = term_gradients(losses(), params)
        contenders, wrong = agreeing(made, Start.of(params, grads))
    left_out = left_out | wrong
    if not contenders:
        return Outcome(left_out=left_out)
    times = take_turns(suite.device, contenders, suite.budget)
    records = make_records(
        times,
        dict.fromkeys(times.samples),
        workload=name,
        parameters=elements(params),
        tensors=len(params),
        terms=len(grads),
        dtype="float32",
        **record,
    )
    return Outcome(records, times.samples, left_out)
