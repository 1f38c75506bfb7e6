"""Stage 3: one pass over the parameter, its moments and the terms' gradients."""

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
from .rows import advance, is_aligned, reach, row_step
from .update_math import balanced_gradient, larger, second_moment


@triton.jit
def add_terms(
    grad, second, maximum, scales, rows, r, block, mask, param, of_terms,
    TERMS: tl.constexpr, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """One block of every term: advances second moments and maxima; the sum of the h_k, and what bounds the step."""
    direction, beta2, one_minus_beta2, l2_decay = of_terms
    combined = tl.zeros([BLOCK], C)
    largest = tl.zeros([BLOCK], C)
    for k in range(TERMS):
        pair = k * rows + r
        second_address = tl.load(second + pair)
        if second_address != 0:
            second_at = elements(second_address, block, C, ALIGN)
            bound = tl.load(second_at, mask, other=0.0)
            address = tl.load(grad + pair)
            if address != 0:  # an absent term keeps its moments, and still bounds the step
                scale = direction * tl.load(scales + r * TERMS + k)
                h = balanced_gradient(load_grad(address, block, mask, PARAM, C, ALIGN), scale, param, l2_decay)
                combined += h
                bound = second_moment(bound, h, beta2, one_minus_beta2)
                tl.store(second_at, bound, mask)
            maximum_address = tl.load(maximum + pair)
            if maximum_address != 0:
                maximum_at = elements(maximum_address, block, C, ALIGN)
                bound = larger(bound, tl.load(maximum_at, mask, other=0.0))
                tl.store(maximum_at, bound, mask)
            largest = larger(largest, bound)
    return combined, largest


@triton.jit
def update(
    row, group, grad, second, maximum, factors, scales, rows, r, begin, end,
    TERMS: tl.constexpr, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Stage 3 of a chunk. ALIGN divides every address, and ``end``."""
    param_address = tl.load(row + r * ROW_FIELDS)
    exp_avg_address = tl.load(row + r * ROW_FIELDS + 1)
    combined_address = tl.load(grad + TERMS * rows + r)
    number = tl.load(row + r * ROW_FIELDS + 3)
    of_terms, of_first_moment, of_step = row_step(group + number * GROUP_FIELDS, factors + r * FACTORS, C)
    block = begin // BLOCK
    while block * BLOCK < end:
        mask = mask_of(block, end, ALIGN)
        param_at = elements(param_address, block, PARAM, ALIGN)
        param = tl.load(param_at, mask, other=0.0).to(C)
        combined, largest = add_terms(
            grad, second, maximum, scales, rows, r, block, mask, param, of_terms, TERMS, PARAM, C, ALIGN
        )
        advance(
            param_at, exp_avg_address, combined_address, param, combined, combined, largest, block, mask,
            of_first_moment, of_step, PARAM, C, ALIGN,
        )  # fmt: skip
        block += 1


@kernel
def mtadam_update(
    chunk,  # [programs] of Chunk
    row,  # [rows] of Row
    group,  # [groups] of Group
    grad,  # [terms + 1, rows] int64: addresses, 0 where absent; the last for the sums of balanced gradients
    second,  # [terms, rows] int64: addresses
    maximum,  # [terms, rows] int64: addresses
    factors,  # [rows] of StepFactors
    scales,  # [rows, terms]
    rows: tl.int64,
    TERMS: tl.constexpr,
    PARAM: tl.constexpr,  # the type of the parameters of these chunks
):
    """A program per chunk."""
    C: tl.constexpr = scales.dtype.element_ty
    r, begin, end, _ = chunk_of(chunk)
    is_reached, bits = reach(grad, rows, r, TERMS)
    bits |= end | tl.load(row + r * ROW_FIELDS) | tl.load(row + r * ROW_FIELDS + 1)
    for k in range(TERMS):
        bits |= tl.load(second + k * rows + r) | tl.load(maximum + k * rows + r)
    if is_reached:
        if is_aligned(bits):
            update(row, group, grad, second, maximum, factors, scales, rows, r, begin, end, TERMS, PARAM, C, VECTOR)
        else:
            update(row, group, grad, second, maximum, factors, scales, rows, r, begin, end, TERMS, PARAM, C, 1)
