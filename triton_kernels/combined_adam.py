"""Adam's step on the weighted sum of the terms' gradients."""

import triton
import triton.language as tl

from .memory import (
    BLOCK,
    FACTORS,
    GROUP_FIELDS,
    ROW_FIELDS,
    VECTOR,
    chunk_of,
    elements,
    kernel,
    load_grad,
    mask_of,
)
from .rows import advance, advance_step, is_aligned, reach, row_step
from .update_math import add_weighted, balanced_gradient, larger, second_moment


@kernel
def begin_step(
    row,  # [rows] of Row
    group,  # [groups] of Group
    grad,  # [terms + 1, rows] int64: addresses, 0 where absent
    factors,  # [rows] of StepFactors
    steps,  # [rows] float32
    rows: tl.int64,
    TERMS: tl.constexpr,
):
    """A program per row: counts the step of one that a term reaches, and notes what it multiplies by."""
    r = tl.program_id(0).to(tl.int64)
    is_reached, _ = reach(grad, rows, r, TERMS)
    if is_reached:
        of_group = group + tl.load(row + r * ROW_FIELDS + 3) * GROUP_FIELDS
        advance_step(steps + r, factors + r * FACTORS, of_group, factors.dtype.element_ty)


@triton.jit
def weighted_sum(
    grad, weights, rows, r, block, mask, TERMS: tl.constexpr, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr
):
    """One block of the sum."""
    combined = tl.zeros([BLOCK], C)
    for k in range(TERMS):
        address = tl.load(grad + k * rows + r)
        if address != 0:
            g = load_grad(address, block, mask, PARAM, C, ALIGN)
            combined = add_weighted(combined, g, tl.load(weights + r * TERMS + k))
    return combined


@triton.jit
def update(
    row, group, grad, second_address, maximum_address, factors, weights, rows, r, begin, end,
    TERMS: tl.constexpr, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The step of a chunk. ALIGN divides every address, and ``end``."""
    param_address = tl.load(row + r * ROW_FIELDS)
    exp_avg_address = tl.load(row + r * ROW_FIELDS + 1)
    combined_address = tl.load(grad + TERMS * rows + r)
    number = tl.load(row + r * ROW_FIELDS + 3)
    of_terms, of_first_moment, of_step = row_step(group + number * GROUP_FIELDS, factors + r * FACTORS, C)
    direction, beta2, one_minus_beta2, l2_decay = of_terms
    block = begin // BLOCK
    while block * BLOCK < end:
        mask = mask_of(block, end, ALIGN)
        param_at = elements(param_address, block, PARAM, ALIGN)
        param = tl.load(param_at, mask, other=0.0).to(C)
        combined = weighted_sum(grad, weights, rows, r, block, mask, TERMS, PARAM, C, ALIGN)
        gradient = balanced_gradient(combined, direction, param, l2_decay)
        second_at = elements(second_address, block, C, ALIGN)
        bound = second_moment(tl.load(second_at, mask, other=0.0), gradient, beta2, one_minus_beta2)
        tl.store(second_at, bound, mask)
        if maximum_address != 0:
            maximum_at = elements(maximum_address, block, C, ALIGN)
            bound = larger(bound, tl.load(maximum_at, mask, other=0.0))
            tl.store(maximum_at, bound, mask)
        advance(
            param_at, exp_avg_address, combined_address, param, gradient, combined, bound, block, mask,
            of_first_moment, of_step, PARAM, C, ALIGN,
        )  # fmt: skip
        block += 1


@kernel
def combined_adam(
    chunk,  # [programs] of Chunk
    row,  # [rows] of Row
    group,  # [groups] of Group
    grad,  # [terms + 1, rows] int64: addresses, 0 where absent; the last for the combined gradients
    second,  # [1, rows] int64: addresses
    maximum,  # [1, rows] int64: addresses
    factors,  # [rows] of StepFactors
    weights,  # [rows, terms]
    rows: tl.int64,
    TERMS: tl.constexpr,
    PARAM: tl.constexpr,  # the type of the parameters of these chunks
):
    """A program per chunk."""
    C: tl.constexpr = weights.dtype.element_ty
    r, begin, end, _ = chunk_of(chunk)
    is_reached, bits = reach(grad, rows, r, TERMS)
    v, v_max = tl.load(second + r), tl.load(maximum + r)
    bits |= end | tl.load(row + r * ROW_FIELDS) | tl.load(row + r * ROW_FIELDS + 1) | v | v_max
    if is_reached:
        if is_aligned(bits):
            update(row, group, grad, v, v_max, factors, weights, rows, r, begin, end, TERMS, PARAM, C, VECTOR)
        else:
            update(row, group, grad, v, v_max, factors, weights, rows, r, begin, end, TERMS, PARAM, C, 1)
