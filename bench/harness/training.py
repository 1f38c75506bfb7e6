"""Measure whole training steps of small models, each contender on a network of its own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from bench.harness.agreement import Start, check_contenders
from bench.harness.devices import Device
from bench.harness.measure import Contender, take_turns
from bench.harness.records import make_records
from bench.harness.suite import Outcome, Suite
from bench.workloads.shapes import count_elements

Losses = Callable[[], dict[str, Tensor]]
Maker = Callable[[list[Tensor], Losses, Device], Contender]


def term_gradients(losses: dict[str, Tensor], params: list[Tensor]) -> list[list[Tensor]]:
    """Return the ``[K][parameters]`` gradients."""
    return [list(torch.autograd.grad(loss, params, retain_graph=True)) for loss in losses.values()]


@contextmanager
def disable_tf32() -> Iterator[None]:
    """Turn off TensorFloat-32 in the body: Adam's first step amplifies the rounding of cuDNN's convolutions."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def measure_training(
    name: str, suite: Suite, makers: Mapping[str, Maker], left_out: dict[str, str], **record: str
) -> Outcome:
    """Measure whole training steps of a small model on real data; see ``measure_networks``."""
    if find_spec("sklearn") is None:
        missing = dict.fromkeys(makers, "scikit-learn, which has the data, is not installed")
        return Outcome(left_out=left_out | missing)
    from bench.workloads.tasks import TASKS

    def make() -> tuple[list[Tensor], Losses]:
        task = TASKS[name](suite.device.torch_device)
        return list(task.network.parameters()), task.stream()

    return measure_networks(make, suite, makers, left_out, workload=name, **record)


def measure_networks(
    make: Callable[[], tuple[list[Tensor], Losses]],
    suite: Suite,
    makers: Mapping[str, Maker],
    left_out: dict[str, str],
    **record: str,
) -> Outcome:
    """Check the first step of each contender, then time whole steps in turns, each on a network of its own.

    Args:
        make: makes the same network each time; returns the parameters to train and the losses of the next batch.
    """
    params, losses = make()
    made = [maker(*make(), suite.device) for maker in makers.values()]
    with disable_tf32():
        grads = term_gradients(losses(), params)
        contenders, wrong = check_contenders(made, Start.copy_of(params, grads))
    left_out = left_out | wrong
    if not contenders:
        return Outcome(left_out=left_out)
    times = take_turns(suite.device, contenders, suite.budget)
    records = make_records(
        times,
        dict.fromkeys(times.samples),
        parameters=count_elements(params),
        tensors=len(params),
        terms=len(grads),
        dtype="float32",
        **record,
    )
    return Outcome(records, times.samples, left_out)
