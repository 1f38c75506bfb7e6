"""Memory whose end is seen: beside pages that cannot be accessed, and allocations that are an element short.

Guard pages see vector code too, which the sanitizers' build of the kernels lacks.
"""

import ctypes
import mmap
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from mtadam_fused import MTAdam
from tests.support import cases

BUFFERS = ("param", "exp_avg", "combined", "grad", "exp_avg_sq0", "max_exp_avg_sq0")


def guarded(value: Tensor, place: str, short: int = 0) -> Tensor:
    """Copy ``value`` to memory beside a page that cannot be accessed.

    Args:
        place: whether the copy lies "before" the page or "after" it.
        short: so many of its last elements are in the page.
    """
    if value.device.type != "cpu" or not value.numel():
        return value
    size, page = value.numel() * value.element_size(), mmap.PAGESIZE
    usable = -(-size // page) * page
    memory = mmap.mmap(-1, usable + 2 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    offset = page if place == "after" else page + usable - size + short * value.element_size()
    copy = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=offset)
    used = value.numel() - short
    copy[:used] = value.detach().flatten()[:used]
    for guard in (copy.data_ptr() - offset, copy.data_ptr() - offset + page + usable):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    return copy.view(value.shape)


@contextmanager
def beside_guards() -> Iterator[None]:
    """Place parameters, gradients and what optimizers allocate for them beside guard pages, before or after one."""
    choose = random.Random(0).choice

    def then_guarded(make: Callable[..., Tensor]) -> Any:
        return lambda like, *args, **options: guarded(make(like, *args, **options), choose(("before", "after")))

    with (
        mock.patch.object(cases, "lay_out", then_guarded(cases.lay_out)),
        mock.patch.object(torch, "zeros_like", then_guarded(torch.zeros_like)),
        mock.patch.object(torch, "empty_like", then_guarded(torch.empty_like)),
    ):
        yield


def is_guarded(value: Tensor) -> bool:
    """Return whether ``value`` begins or ends with a page, which is unlikely elsewhere."""
    return value.data_ptr() % mmap.PAGESIZE == 0 or (value.data_ptr() + value.nbytes) % mmap.PAGESIZE == 0


def short_of_one(value: Tensor, place: str) -> Tensor:
    """Copy ``value`` to memory that ends an element early: at a guard page, or an allocation of the heap."""
    if place == "guard":
        return guarded(value, "before", short=1)
    copy = value.detach().clone()
    copy.untyped_storage().resize_((copy.numel() - 1) * copy.element_size())
    return copy


def misaligned(value: Tensor) -> Tensor:
    """Copy ``value`` to an address that is not a multiple of an element's size."""
    memory = bytearray(value.numel() * value.element_size() + 1)
    return torch.frombuffer(memory, dtype=value.dtype, offset=1).copy_(value)


def step_with(buffer: str, changed: Callable[[Tensor], Tensor]) -> None:
    """Make a step that finds one of its buffers changed."""
    p = nn.Parameter(torch.ones(100))
    optimizer = MTAdam([p], amsgrad=True, keep_combined_grad=True, backend="cpu")
    empty_like = torch.empty_like  # makes the combined gradient
    for change in (torch.clone, changed):  # the first step makes the state
        if buffer in optimizer.state[p]:
            optimizer.state[p][buffer] = change(optimizer.state[p][buffer])
        if buffer == "param":
            p.data = change(p.detach())
        grad, of_combined = torch.ones(100), change if buffer == "combined" else torch.clone
        with optimizer.term(0):
            p.grad = change(grad) if buffer == "grad" else grad
        with mock.patch.object(torch, "empty_like", lambda *a, of=of_combined, **o: of(empty_like(*a, **o))):
            optimizer.step()


def ends_of_overruns(place: str) -> dict[str, int]:
    """Tell how a process ends (negative: by which signal) that makes a step with each buffer an element short."""
    changes = {buffer: lambda value: short_of_one(value, place) for buffer in BUFFERS}
    ends = {}
    step_with("none", torch.clone)  # imports what the first step imports
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # to write a core file for each takes longer than all the rest
    for buffer, change in [("none", torch.clone), *changes.items(), ("misaligned", misaligned)]:
        print(f"== {buffer}", file=sys.stderr, flush=True)
        child = os.fork()
        if not child:
            step_with("grad" if buffer == "misaligned" else buffer, change)
            os._exit(0)
        ends[buffer] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("== end", file=sys.stderr, flush=True)
    return ends
