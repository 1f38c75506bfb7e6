"""Make torch.optim.Adam, and a copy and a sum: the fastest ways to move memory and to read it."""

import torch
from torch import Tensor

from bench.harness import byte_model
from bench.harness.agreement import adam
from bench.harness.devices import Device
from bench.harness.measure import Contender
from bench.workloads.shapes import Case, Grads, count_elements

COPIED_ELEMENTS = 2**25  # at least: enough to leave the caches


def make_adam_on_sum(case: Case, device: Device, grads: Grads) -> Contender:
    """Make one fused Adam. The sum of losses has one gradient, and any gradient stands for it."""
    params = case.params(device.torch_device)
    optimizer = torch.optim.Adam(params, fused=True)
    for p, g in zip(params, grads[0], strict=True):
        p.grad = g
    moved = byte_model.adam_step(case.element) * count_elements(params)
    # Adam keeps 16-bit moments for 16-bit parameters, which no formula in float64 agrees with.
    oracle = adam if case.dtype == torch.float32 else None
    return Contender("adam-on-sum", optimizer.step, params, bytes_moved=moved, state=optimizer.state, oracle=oracle)


def make_adam_k_times(case: Case, device: Device, grads: Grads) -> Contender:
    """Make a step of fused Adam on each term's gradients in turn."""
    params = case.params(device.torch_device)
    optimizer = torch.optim.Adam(params, fused=True)

    def run() -> None:
        for of_term in grads:
            for p, g in zip(params, of_term, strict=True):
                p.grad = g
            optimizer.step()

    moved = case.terms * byte_model.adam_step(case.element) * count_elements(params)
    return Contender("adam-k-times", run, params, bytes_moved=moved, state=optimizer.state)


def make_set(case: Case, device: Device, grads: Grads) -> Contender:
    """Make what ``make_adam_k_times`` does beside its steps: set ``p.grad`` for each term."""
    params = case.params(device.torch_device)

    def run() -> None:
        for of_term in grads:
            for p, g in zip(params, of_term, strict=True):
                p.grad = g

    return Contender("set-grad", run)


def make_source(case: Case, device: Device, grads: Grads) -> Tensor:
    """Make a tensor to read, of as many elements as there are parameters, or too many for a cache."""
    count = max(count_elements(grads[0]), COPIED_ELEMENTS)
    return torch.ones(count, dtype=case.dtype, device=device.torch_device)


def make_read(case: Case, device: Device, grads: Grads) -> Contender:
    """Make a sum over as many elements as there are parameters: how fast memory is read alone."""
    source = make_source(case, device, grads)
    return Contender("read", source.sum, bytes_moved=source.nbytes)


def make_copy(case: Case, device: Device, grads: Grads) -> Contender:
    """Make a copy within the device's memory, of as many elements as there are parameters."""
    source = make_source(case, device, grads)
    target = torch.empty_like(source)
    moved = byte_model.copy(case.element) * len(source)
    return Contender("copy", lambda: target.copy_(source), bytes_moved=moved)
