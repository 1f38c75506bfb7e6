"""Make the published loop a peer of the benchmarks."""

import torch

from bench.harness import byte_model
from bench.harness.agreement import mtadam
from bench.harness.devices import Device
from bench.harness.measure import Contender, LeftOutError
from bench.workloads.shapes import Case, Grads, count_elements
from oracles.published_loop import PublishedMTAdam


def make_published(case: Case, device: Device, grads: Grads) -> Contender:
    """Make the published loop."""
    if case.dtype != torch.float32:
        raise LeftOutError("the published loop keeps its moments in the parameters' type")
    params = case.params(device.torch_device)
    loop = PublishedMTAdam([{"params": params}], terms=case.terms)
    moved = byte_model.published_step(case.terms) * count_elements(params)
    return Contender(
        "published",
        lambda: loop.step(grads),
        params,
        bytes_moved=moved,
        state=loop.state,
        oracle=mtadam,
    )
