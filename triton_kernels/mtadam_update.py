"""Stage 3: one pass over the parameter, its moments and the terms' gradients."""

import triton
import triton.language as tl

from .fields import ROW_EXP_AVG, ROW_PARAM, ROW_SIZE
from .memory import BLOCK, VECTOR, chunk_of, elements, kernel, load_grad, mask_of
from .rows import advance, is_aligned, is_skipped, reach, row_scalars
from .update_math import add_term, nan_max


@triton.jit
def add_terms(
    grad, exp_avg_sq, max_exp_avg_sq, scales, rows, r, block, mask, param, scalars, unscale,
    TERMS: tl.constexpr, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Advance one block of every term's second moment and maximum.

    Returns the sum of the h_k, and the largest second moment or maximum.
    """
    combined = tl.zeros([BLOCK], C)
    largest = tl.zeros([BLOCK], C)
    for k in range(TERMS):
        pair = k * rows + r
        exp_avg_sq_address = tl.load(exp_avg_sq + pair)
        if exp_avg_sq_address != 0:
            exp_avg_sq_at = elements(exp_avg_sq_address, block, C, ALIGN)
            bound = tl.load(exp_avg_sq_at, mask, other=0.0)
            address = tl.load(grad + pair)
            if address != 0:  # an absent term keeps its moments, and still bounds the step
                g = load_grad(address, block, mask, PARAM, C, ALIGN)
                bound, combined = add_term(
                    g, tl.load(scales + r * TERMS + k) * unscale, param, bound, combined, scalars
                )
                tl.store(exp_avg_sq_at, bound, mask)
            max_exp_avg_sq_address = tl.load(max_exp_avg_sq + pair)
            if max_exp_avg_sq_address != 0:
                max_exp_avg_sq_at = elements(max_exp_avg_sq_address, block, C, ALIGN)
                bound = nan_max(bound, tl.load(max_exp_avg_sq_at, mask, other=0.0))
                tl.store(max_exp_avg_sq_at, bound, mask)
            largest = nan_max(largest, bound)
    return combined, largest


@triton.jit
def update(
    row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end,
    TERMS: tl.constexpr, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Run stage 3 of a chunk. ALIGN divides every address, and ``end``."""
    param_address = tl.load(row + r * ROW_SIZE + ROW_PARAM)
    exp_avg_address = tl.load(row + r * ROW_SIZE + ROW_EXP_AVG)
    combined_address = tl.load(grad + TERMS * rows + r)
    scalars, own_factors = row_scalars(row, group, factors, r, C)
    _, _, _, _, unscale = own_factors
    block = begin // BLOCK
    while block * BLOCK < end:
        mask = mask_of(block, end, ALIGN)
        param_at = elements(param_address, block, PARAM, ALIGN)
        param = tl.load(param_at, mask, other=0.0).to(C)
        combined, largest = add_terms(
            grad, exp_avg_sq, max_exp_avg_sq, scales, rows, r, block, mask, param, scalars, unscale,
            TERMS, PARAM, C, ALIGN,
        )  # fmt: skip
        advance(
            param_at, exp_avg_address, combined_address, param, combined, combined, largest, block, mask,
            scalars, own_factors, PARAM, C, ALIGN,
        )  # fmt: skip
        block += 1


@kernel
def mtadam_update(
    chunk,  # [programs] of Chunk
    row,  # [rows] of Row
    group,  # [groups] of Group
    grad,  # [terms + 1, rows] int64: addresses, 0 where absent; the last for the sums of balanced gradients
    exp_avg_sq,  # [terms, rows] int64: addresses
    max_exp_avg_sq,  # [terms, rows] int64: addresses
    factors,  # [rows] of StepFactors
    scales,  # [rows, terms]
    found_inf,  # [] float32
    rows: tl.int64,
    TERMS: tl.constexpr,
    PARAM: tl.constexpr,  # the type of the parameters of these chunks
):
    """Run a program per chunk."""
    C: tl.constexpr = scales.dtype.element_ty
    r, begin, end, _ = chunk_of(chunk)
    has_grad, bits = reach(grad, rows, r, TERMS)
    bits |= end | tl.load(row + r * ROW_SIZE + ROW_PARAM) | tl.load(row + r * ROW_SIZE + ROW_EXP_AVG)
    for k in range(TERMS):
        bits |= tl.load(exp_avg_sq + k * rows + r) | tl.load(max_exp_avg_sq + k * rows + r)
    if has_grad and not is_skipped(found_inf):
        if is_aligned(bits):
            update(
                row,
                group,
                grad,
                exp_avg_sq,
                max_exp_avg_sq,
                factors,
                scales,
                rows,
                r,
                begin,
                end,
                TERMS,
                PARAM,
                C,
                VECTOR,
            )
        else:
            update(
                row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end, TERMS, PARAM, C, 1
            )
