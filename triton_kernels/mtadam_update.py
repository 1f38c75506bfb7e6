"""Stage 3: one pass over the parameter, its moments and the terms' gradients."""

import triton
import triton.language as tl

from .fields import ROW_EXP_AVG, ROW_PARAM, ROW_SIZE
from .memory import BLOCK, VECTOR, WIDE, chunk_of, elements, kernel, load_or_zeros, mask_of
from .rows import advance, is_aligned, is_skipped, reach, row_scalars, update_row
from .update_math import add_term, nan_max


@triton.jit
def load_term(
    grad, exp_avg_sq, k, rows, r, block, mask,
    TERMS: tl.constexpr, GRAD: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Return one block of term k's gradient and second moment, 0 where absent, and their addresses."""
    pair, is_term = k * rows + r, k < TERMS
    address = tl.load(grad + pair, is_term, other=0) & ~WIDE
    exp_avg_sq_address = tl.load(exp_avg_sq + pair, is_term, other=0)
    g = load_or_zeros(address, block, mask, GRAD, C, ALIGN)
    return g, load_or_zeros(exp_avg_sq_address, block, mask, C, C, ALIGN), address, exp_avg_sq_address


@triton.jit
def step_term(
    term, max_exp_avg_sq, scales, k, rows, r, block, mask, param, scalars, unscale, combined, largest,
    TERMS: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Advance one block of term k's second moment and maximum; ``term`` is what ``load_term`` returned.

    Returns ``combined`` with the term's h_k added, and the larger of ``largest`` and the second moment or maximum.
    """
    g, bound, address, exp_avg_sq_address = term
    if exp_avg_sq_address != 0:
        if address != 0:  # an absent term keeps its moments, and still bounds the step
            bound, combined = add_term(g, tl.load(scales + r * TERMS + k) * unscale, param, bound, combined, scalars)
            tl.store(elements(exp_avg_sq_address, block, C, ALIGN), bound, mask)
        max_exp_avg_sq_address = tl.load(max_exp_avg_sq + k * rows + r)
        if max_exp_avg_sq_address != 0:
            max_exp_avg_sq_at = elements(max_exp_avg_sq_address, block, C, ALIGN)
            bound = nan_max(bound, tl.load(max_exp_avg_sq_at, mask, other=0.0))
            tl.store(max_exp_avg_sq_at, bound, mask)
        largest = nan_max(largest, bound)
    return combined, largest


@triton.jit
def add_terms(
    grad, exp_avg_sq, max_exp_avg_sq, scales, rows, r, block, mask, param, scalars, unscale,
    TERMS: tl.constexpr, GRAD: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Advance one block of every term's second moment and maximum.

    Returns the sum of the h_k, and the largest second moment or maximum. Loads two terms before it stores the first,
    because loads do not pass stores; or one, where every element takes an address and registers would run out.
    """
    AT_ONCE: tl.constexpr = 2 if ALIGN > 1 else 1
    combined = tl.zeros([BLOCK], C)
    largest = tl.zeros([BLOCK], C)
    for k in range(0, TERMS, AT_ONCE):
        one = load_term(grad, exp_avg_sq, k, rows, r, block, mask, TERMS, GRAD, C, ALIGN)
        if AT_ONCE == 2:
            other = load_term(grad, exp_avg_sq, k + 1, rows, r, block, mask, TERMS, GRAD, C, ALIGN)
        combined, largest = step_term(
            one, max_exp_avg_sq, scales, k, rows, r, block, mask, param, scalars, unscale, combined, largest, TERMS, C,
            ALIGN,
        )  # fmt: skip
        if AT_ONCE == 2:
            combined, largest = step_term(
                other, max_exp_avg_sq, scales, k + 1, rows, r, block, mask, param, scalars, unscale, combined, largest,
                TERMS, C, ALIGN,
            )  # fmt: skip
    return combined, largest


@triton.jit
def update(
    row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end,
    TERMS: tl.constexpr, PARAM: tl.constexpr, GRAD: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
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
            TERMS, GRAD, C, ALIGN,
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
    grads = reach(grad, rows, r, TERMS)
    bits = (grads & ~WIDE) | end
    for k in range(TERMS):
        bits |= tl.load(exp_avg_sq + k * rows + r) | tl.load(max_exp_avg_sq + k * rows + r)
    if grads != 0 and not is_skipped(found_inf):
        if is_aligned(bits, row, grad, rows, r, TERMS):
            update_row(
                update, row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end, grads,
                TERMS, PARAM, C, VECTOR,
            )  # fmt: skip
        else:
            update_row(
                update, row, group, grad, exp_avg_sq, max_exp_avg_sq, factors, scales, rows, r, begin, end, grads,
                TERMS, PARAM, C, 1,
            )  # fmt: skip
