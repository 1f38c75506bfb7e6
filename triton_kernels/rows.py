"""What the kernels share of rows: sums over their chunks, their step, and the end of an update."""

import triton
import triton.language as tl

from .memory import FACTORS, VECTOR, WIDE, elements
from .update_math import first_moment, step_factors, updated_param

SUMS = tl.constexpr(2048)  # partial sums that a program reads at once


@triton.jit
def row_sums(partial, first, last, offset, mask, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Sums [WIDTH] in float64, over chunks [first, last), of those of the chunks' COUNT sums that ``offset`` names."""
    BLOCK: tl.constexpr = SUMS // WIDTH if SUMS > WIDTH else 1
    sums = tl.zeros([BLOCK, WIDTH], tl.float64)
    start = first
    while start < last:
        number = start + tl.arange(0, BLOCK)
        wanted = (number < last)[:, None] & mask[None, :]
        sums += tl.load(partial + number[:, None] * COUNT + offset[None, :], wanted, other=0.0).to(tl.float64)
        start += BLOCK
    return tl.sum(sums, axis=0)


@triton.jit
def advance_step(step, factors, group, C: tl.constexpr):
    """Counts a row's step, and writes its StepFactors; from float64, because beta^t loses digits in float32."""
    count = tl.load(step) + 1
    lr, beta1, beta2 = tl.load(group), tl.load(group + 1), tl.load(group + 2)
    eps, decay = tl.load(group + 4), tl.load(group + 6)
    computed = step_factors(lr, beta1, beta2, eps, decay, count.to(tl.float64), C)
    tl.store(step, count)
    for i in tl.static_range(FACTORS):
        tl.store(factors + i, computed[i])


@triton.jit
def row_step(group, factors, C: tl.constexpr):
    """The scalars of a row: those of its terms, of its first moment, and its StepFactors."""
    beta1, beta2 = tl.load(group + 1), tl.load(group + 2)
    l2_decay, direction = tl.load(group + 5), tl.load(group + 7)
    of_terms = (direction.to(C), beta2.to(C), (1 - beta2).to(C), l2_decay.to(C))
    of_first_moment = (beta1.to(C), (1 - beta1).to(C))
    of_step = (tl.load(factors), tl.load(factors + 1), tl.load(factors + 2), tl.load(factors + 3))
    return of_terms, of_first_moment, of_step


@triton.jit
def reach(grad, rows, r, TERMS: tl.constexpr):
    """Whether any term reaches a row, and the addresses of its gradients and of their sum, or-ed together."""
    is_reached = False
    bits = tl.load(grad + TERMS * rows + r)
    for k in range(TERMS):
        address = tl.load(grad + k * rows + r)
        is_reached |= address != 0
        bits |= address & ~WIDE
    return is_reached, bits


@triton.jit
def is_aligned(bits):
    """Whether all that was or-ed into ``bits`` is a multiple of VECTOR."""
    return bits % VECTOR == 0


@triton.jit
def advance(
    param_at, exp_avg_address, combined_address, param, gradient, combined, largest, block, mask,
    of_first_moment, of_step, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """What both updates end with: first moment, parameter, and the combined gradient where it is wanted."""
    beta1, one_minus_beta1 = of_first_moment
    exp_avg_at = elements(exp_avg_address, block, C, ALIGN)
    exp_avg = first_moment(tl.load(exp_avg_at, mask, other=0.0), gradient, beta1, one_minus_beta1)
    tl.store(exp_avg_at, exp_avg, mask)
    tl.store(param_at, updated_param(param, exp_avg, largest, of_step).to(PARAM), mask)
    if combined_address != 0:
        tl.store(elements(combined_address, block, PARAM, ALIGN), combined.to(PARAM), mask)
