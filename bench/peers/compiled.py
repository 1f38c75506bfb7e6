"""Make the reference's step through torch.compile a peer of the benchmarks."""

import contextlib
import shutil
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain

import torch
from torch import Tensor

from bench.harness import byte_model
from bench.harness.agreement import mtadam
from bench.harness.devices import Device
from bench.harness.measure import Contender, LeftOutError, summarize_error
from bench.workloads.shapes import Case, Grads, count_elements
from mtadam_fused import reference

# The time that compiling takes grows with tensors and terms: on these alone, and small_300 only where --compile-seconds
# allows for it.
COMPILED = {("mnist", 2), ("mnist", 4), ("mnist", 10), ("equal_100m", 4), ("small_300", 2)}


@torch.no_grad()
def reference_step(
    params: list[Tensor],
    grads: Grads,
    norm_avg: Tensor,
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[list[Tensor]],
    step: Tensor,
) -> None:
    """Make a whole step with the functions of the reference, for torch.compile. Change all but ``grads``."""
    step.add_(1)
    norms = reference.term_norms(list(zip(*grads, strict=True)), like=norm_avg)
    rows = norm_avg[:, :1]
    rule = reference.BalanceRule(
        beta3=torch.full_like(rows, 0.9, dtype=torch.float64),
        first_nonzero=torch.zeros_like(rows, dtype=torch.bool),
        norms=torch.full_like(rows, reference.AVERAGE, dtype=torch.int64),
        anchor=torch.full_like(rows, reference.FIRST, dtype=torch.int64),
    )
    advanced, scales = reference.balance(norms, norm_avg, torch.ones_like(norm_avg), step.expand(len(params)), rule)
    norm_avg.copy_(advanced)
    factors = reference.step_factors(1e-3, 0.9, 0.999, 1e-8, 0.0, step)
    scalars = reference.RowScalars(grad_sign=1.0, beta1=0.9, beta2=0.999, l2_decay=0.0, factors=factors)
    for row, param in enumerate(params):
        reference.mtadam_update(
            param,
            [of_term[row] for of_term in grads],
            scales[row],
            exp_avgs[row],
            exp_avg_sqs[row],
            [None] * len(grads),
            scalars,
        )


class _TooLongError(BaseException):
    """A timeout that the compiler's ``except Exception`` does not catch."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise LeftOutError in the body after so many seconds. Main thread only."""

    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except _TooLongError:
        raise LeftOutError(f"not compiled within {seconds} s") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def make_compiled(case: Case, device: Device, grads: Grads) -> Contender:
    """Make the reference's step through torch.compile, and compile it."""
    needs, found = (
        ("triton", find_spec("triton")) if device.torch_device.type == "cuda" else ("g++", shutil.which("g++"))
    )
    if not found:
        raise LeftOutError(f"torch.compile needs {needs}, which is not installed")
    if (case.workload, case.terms) not in COMPILED or case.dtype != torch.float32:
        raise LeftOutError("compiled for a few workloads only: the time it takes grows with tensors and terms")
    params = case.params(device.torch_device)
    norm_avg = torch.full((len(params), case.terms), torch.nan, device=device.torch_device)
    exp_avgs = [torch.zeros_like(p, requires_grad=False) for p in params]
    exp_avg_sqs = [[torch.zeros_like(p, requires_grad=False) for _ in grads] for p in params]
    step = torch.zeros((), device=device.torch_device)
    detached = [p.detach() for p in params]
    torch.compiler.reset()
    compiled = torch.compile(reference_step, fullgraph=True, dynamic=False)

    def run() -> None:
        compiled(detached, grads, norm_avg, exp_avgs, exp_avg_sqs, step)

    try:
        with time_limit(device.compile_seconds):
            run()
    except LeftOutError:
        raise
    except Exception as error:  # of many kinds
        raise LeftOutError(f"torch.compile failed: {summarize_error(error)}") from None
    with torch.no_grad():  # back to the start, in place
        for p, fresh in zip(params, case.params(device.torch_device), strict=True):
            p.copy_(fresh)
        for moment in [step, *exp_avgs, *chain.from_iterable(exp_avg_sqs)]:
            moment.zero_()
        norm_avg.fill_(torch.nan)
    moved = byte_model.mtadam_step(case.terms, case.element) * count_elements(params)
    return Contender("compiled", run, params, bytes_moved=moved, oracle=mtadam)
