"""Shared by the kernels: sums over the chunks of a row, its scalars, and the end of an update."""

import triton
import triton.language as tl

from .fields import (
    FACTORS_DECAY,
    FACTORS_EPS,
    FACTORS_INV_CORRECTION2,
    FACTORS_SIZE,
    FACTORS_STEP_SIZE,
    FACTORS_UNSCALE,
    GROUP_BETA1,
    GROUP_BETA2,
    GROUP_DECOUPLED_DECAY,
    GROUP_EPS,
    GROUP_GRAD_SIGN,
    GROUP_L2_DECAY,
    GROUP_LR,
    GROUP_SIZE,
    ROW_EXP_AVG,
    ROW_GROUP,
    ROW_PARAM,
    ROW_SIZE,
)
from .memory import VECTOR, WIDE, elements
from .update_math import first_moment, step_factors, updated_param

SUMS = tl.constexpr(2048)  # partial sums that a program reads at once


@triton.jit
def row_sums(partial, first, last, offset, mask, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Sum over chunks [first, last) in float64: of the COUNT partial sums of each, those at ``offset`` [WIDTH]."""
    BLOCK: tl.constexpr = SUMS // WIDTH if SUMS > WIDTH else 1
    sums = tl.zeros([BLOCK, WIDTH], tl.float64)
    start = first
    while start < last:
        number = start + tl.arange(0, BLOCK)
        wanted = (number < last)[:, None] & mask[None, :]
        sums += tl.load(partial + number[:, None] * COUNT + offset[None, :], wanted, other=0.0)
        start += BLOCK
    return tl.sum(sums, axis=0)


@triton.jit
def group_of(row, group, r):
    """Return the address of the row's group."""
    return group + tl.load(row + r * ROW_SIZE + ROW_GROUP) * GROUP_SIZE


@triton.jit
def scale_of_grads(grad_scale):
    """Return what a GradScaler has multiplied the gradients by, in float64."""
    return tl.load(grad_scale).to(tl.float64)


@triton.jit
def is_skipped(found_inf):
    """Return whether a GradScaler has found a gradient that is not finite, and the step changes nothing."""
    return tl.load(found_inf) != 0


@triton.jit
def begin_row(step, factors, group, grad_scale, C: tl.constexpr):
    """Count a row's step, and store its factors; computed in float64, because beta^t loses digits in float32."""
    steps = tl.load(step) + 1
    lr, eps = tl.load(group + GROUP_LR), tl.load(group + GROUP_EPS)
    beta1, beta2 = tl.load(group + GROUP_BETA1), tl.load(group + GROUP_BETA2)
    decay = tl.load(group + GROUP_DECOUPLED_DECAY)
    scale = scale_of_grads(grad_scale)
    computed = step_factors(lr, beta1, beta2, eps, decay, steps.to(tl.float64), scale, C)
    tl.store(step, steps)
    for i in tl.static_range(FACTORS_SIZE):
        tl.store(factors + i, computed[i])


@triton.jit
def row_scalars(row, group, factors, r, C: tl.constexpr):
    """Return the scalars of a row's step as RowScalars in C++ has them, and its factors."""
    own_group, own = group_of(row, group, r), factors + r * FACTORS_SIZE
    beta1, beta2 = tl.load(own_group + GROUP_BETA1), tl.load(own_group + GROUP_BETA2)
    grad_sign, l2_decay = tl.load(own_group + GROUP_GRAD_SIGN), tl.load(own_group + GROUP_L2_DECAY)
    scalars = (grad_sign.to(C), beta1.to(C), (1 - beta1).to(C), beta2.to(C), (1 - beta2).to(C), l2_decay.to(C))
    step_size, inv_correction2 = tl.load(own + FACTORS_STEP_SIZE), tl.load(own + FACTORS_INV_CORRECTION2)
    eps, decay, unscale = tl.load(own + FACTORS_EPS), tl.load(own + FACTORS_DECAY), tl.load(own + FACTORS_UNSCALE)
    return scalars, (step_size, inv_correction2, eps, decay, unscale)


@triton.jit
def reach(grad, rows, r, TERMS: tl.constexpr):
    """Return the addresses of a row's gradients, or-ed together; 0 where no term reaches it, WIDE where they are."""
    bits = tl.load(grad + r)
    for k in range(1, TERMS):
        bits |= tl.load(grad + k * rows + r)
    return bits


@triton.jit
def is_aligned(bits, row, grad, rows, r, TERMS: tl.constexpr):
    """Return whether ``bits``, and the addresses of a row that belong to no term, are multiples of VECTOR."""
    param, exp_avg = tl.load(row + r * ROW_SIZE + ROW_PARAM), tl.load(row + r * ROW_SIZE + ROW_EXP_AVG)
    return (bits | param | exp_avg | tl.load(grad + TERMS * rows + r)) % VECTOR == 0


@triton.jit
def advance(
    param_at, exp_avg_address, combined_address, param, gradient, combined, largest, block, mask,
    scalars, factors, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """End both updates: first moment, parameter, and the combined gradient where it is wanted."""
    _, beta1, one_minus_beta1, _, _, _ = scalars
    exp_avg_at = elements(exp_avg_address, block, C, ALIGN)
    exp_avg = first_moment(tl.load(exp_avg_at, mask, other=0.0), gradient, beta1, one_minus_beta1)
    tl.store(exp_avg_at, exp_avg, mask)
    tl.store(param_at, updated_param(param, exp_avg, largest, factors).to(PARAM), mask)
    if combined_address != 0:
        tl.store(elements(combined_address, block, PARAM, ALIGN), combined.to(PARAM), mask)


@triton.jit
def update_row(
    UPDATE: tl.constexpr, row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end, grads,
    TERMS: tl.constexpr, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Make the step of a chunk by the function UPDATE.

    ``grads``, the addresses of its gradients or-ed together, says of what type they are.
    """
    if PARAM == C:
        UPDATE(
            row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end,
            TERMS, PARAM, PARAM, C, ALIGN,
        )  # fmt: skip
    else:
        if grads & WIDE:
            UPDATE(
                row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end,
                TERMS, PARAM, C, C, ALIGN,
            )  # fmt: skip
        else:
            UPDATE(
                row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end,
                TERMS, PARAM, PARAM, C, ALIGN,
            )  # fmt: skip
