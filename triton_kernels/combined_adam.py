"""Adam's step on the weighted sum of the terms' gradients."""

import triton
import triton.language as tl

from .fields import FACTORS_SIZE, ROW_EXP_AVG, ROW_PARAM, ROW_SIZE
from .memory import BLOCK, VECTOR, WIDE, chunk_of, elements, kernel, load_or_zeros, mask_of
from .rows import advance, begin_row, group_of, is_aligned, is_skipped, reach, row_scalars, update_row
from .update_math import add_weighted, balanced_gradient, nan_max, second_moment

TERMS_AT_ONCE = tl.constexpr(4)  # whose loads are in flight together


@kernel
def begin_step(
    row,  # [rows] of Row
    group,  # [groups] of Group
    grad,  # [terms + 1, rows] int64: addresses, 0 where absent
    factors,  # [rows] of StepFactors
    steps,  # [rows] float32
    grad_scale,  # [] float32
    found_inf,  # [] float32
    rows: tl.int64,
    TERMS: tl.constexpr,
):
    """Count the step of each row that a term reaches, and store its factors. Run a program per row."""
    r = tl.program_id(0).to(tl.int64)
    if reach(grad, rows, r, TERMS) != 0 and not is_skipped(found_inf):
        begin_row(steps + r, factors + r * FACTORS_SIZE, group_of(row, group, r), grad_scale, factors.dtype.element_ty)


@triton.jit
def weighted_sum(
    grad, weights, unscale, rows, r, block, mask,
    TERMS: tl.constexpr, GRAD: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Return one block of the sum."""
    combined = tl.zeros([BLOCK], C)
    first = 0
    while first < TERMS:
        for k in tl.static_range(TERMS_AT_ONCE):
            is_term = first + k < TERMS
            address = tl.load(grad + (first + k) * rows + r, is_term, other=0) & ~WIDE
            weight = tl.load(weights + r * TERMS + first + k, is_term & (address != 0), other=0.0)
            g = load_or_zeros(address, block, mask, GRAD, C, ALIGN)
            combined = add_weighted(combined, g, weight * unscale)
        first += TERMS_AT_ONCE
    return combined


@triton.jit
def update(
    row, group, grad, exp_avg_sq_address, max_exp_avg_sq_address, factors, weights, rows, r, begin, end,
    TERMS: tl.constexpr, PARAM: tl.constexpr, GRAD: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Make the step of a chunk. ALIGN divides every address, and ``end``."""
    param_address = tl.load(row + r * ROW_SIZE + ROW_PARAM)
    exp_avg_address = tl.load(row + r * ROW_SIZE + ROW_EXP_AVG)
    combined_address = tl.load(grad + TERMS * rows + r)
    scalars, own_factors = row_scalars(row, group, factors, r, C)
    grad_sign, _, _, beta2, one_minus_beta2, l2_decay = scalars
    _, _, _, _, unscale = own_factors
    block = begin // BLOCK
    while block * BLOCK < end:
        mask = mask_of(block, end, ALIGN)
        param_at = elements(param_address, block, PARAM, ALIGN)
        param = tl.load(param_at, mask, other=0.0).to(C)
        combined = weighted_sum(grad, weights, unscale, rows, r, block, mask, TERMS, GRAD, C, ALIGN)
        gradient = balanced_gradient(combined, grad_sign, param, l2_decay)
        exp_avg_sq_at = elements(exp_avg_sq_address, block, C, ALIGN)
        bound = second_moment(tl.load(exp_avg_sq_at, mask, other=0.0), gradient, beta2, one_minus_beta2)
        tl.store(exp_avg_sq_at, bound, mask)
        if max_exp_avg_sq_address != 0:
            max_exp_avg_sq_at = elements(max_exp_avg_sq_address, block, C, ALIGN)
            bound = nan_max(bound, tl.load(max_exp_avg_sq_at, mask, other=0.0))
            tl.store(max_exp_avg_sq_at, bound, mask)
        advance(
            param_at, exp_avg_address, combined_address, param, gradient, combined, bound, block, mask,
            scalars, own_factors, PARAM, C, ALIGN,
        )  # fmt: skip
        block += 1


@kernel
def combined_adam(
    chunk,  # [programs] of Chunk
    row,  # [rows] of Row
    group,  # [groups] of Group
    grad,  # [terms + 1, rows] int64: addresses, 0 where absent; the last for the combined gradients
    exp_avg_sq,  # [1, rows] int64: addresses
    max_exp_avg_sq,  # [1, rows] int64: addresses
    factors,  # [rows] of StepFactors
    weights,  # [rows, terms]
    found_inf,  # [] float32
    rows: tl.int64,
    TERMS: tl.constexpr,
    PARAM: tl.constexpr,  # the type of the parameters of these chunks
):
    """Run a program per chunk."""
    C: tl.constexpr = weights.dtype.element_ty
    r, begin, end, _ = chunk_of(chunk)
    grads = reach(grad, rows, r, TERMS)
    v, v_max = tl.load(exp_avg_sq + r), tl.load(max_exp_avg_sq + r)
    if grads != 0 and not is_skipped(found_inf):
        if is_aligned((grads & ~WIDE) | v | v_max | end, row, grad, rows, r, TERMS):
            update_row(
                update, row, group, grad, v, v_max, factors, weights, rows, r, begin, end, grads, TERMS, PARAM, C,
                VECTOR,
            )  # fmt: skip
        else:
            update_row(
                update, row, group, grad, v, v_max, factors, weights, rows, r, begin, end, grads, TERMS, PARAM, C, 1
            )
