"""Stage 1: the sums of squares of each chunk of each term's gradient, and norms from these."""

import triton
import triton.language as tl

from .memory import BLOCK, VECTOR, WIDE, chunk_of, count_mask, kernel
from .rows import row_sums, scale_of_grads

SPAN = tl.constexpr(4 * BLOCK.value)  # elements that a program loads at once; more than some chunks have


@triton.jit
def squares(grad, begin, end, GRAD: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr):
    """Return the sum of squares of a chunk. ALIGN divides the gradient's address, ``begin`` and ``end``."""
    sums = tl.zeros([SPAN], C)
    first = begin
    while first < end:
        at = tl.multiple_of(grad.to(tl.pointer_type(GRAD)), ALIGN) + first // ALIGN * ALIGN + tl.arange(0, SPAN)
        g = tl.load(at, count_mask(end - first, SPAN, ALIGN), other=0.0).to(C)
        sums += g * g
        first += SPAN
    return tl.sum(sums, axis=0)


@triton.jit
def squares_of(grad, begin, end, GRAD: tl.constexpr, C: tl.constexpr):
    """Return the sum of squares of a chunk, read in vectors where it can be."""
    if (grad | end) % VECTOR == 0:
        found = squares(grad, begin, end, GRAD, C, VECTOR)
    else:
        found = squares(grad, begin, end, GRAD, C, 1)
    return found


@kernel
def term_norms(
    chunk,  # [programs] of Chunk
    grad,  # [terms, rows] int64: addresses, 0 where absent
    partial,  # [chunks, terms] float64
    rows: tl.int64,
    TERMS: tl.constexpr,
    PARAM: tl.constexpr,  # the type of the parameters of these chunks
):
    """Run a program per chunk."""
    C: tl.constexpr = tl.float64 if PARAM.primitive_bitwidth == 64 else tl.float32
    r, begin, end, number = chunk_of(chunk)
    out = partial + number * TERMS
    for k in range(TERMS):
        address = tl.load(grad + k * rows + r)
        if address != 0:
            if PARAM == C:
                tl.store(out + k, squares_of(address, begin, end, PARAM, C))
            else:
                if address & WIDE:
                    tl.store(out + k, squares_of(address - WIDE, begin, end, C, C))
                else:
                    tl.store(out + k, squares_of(address, begin, end, PARAM, C))


@triton.jit
def row_norms(chunk_start, partial, grad_scale, r, term, is_present, TERMS: tl.constexpr, WIDTH: tl.constexpr):
    """Return norms [WIDTH] float64 of a row's gradients from the sums of its chunks, NaN where absent."""
    first, last = tl.load(chunk_start + r), tl.load(chunk_start + r + 1)
    squares = row_sums(partial, first, last, term, is_present, TERMS, WIDTH)
    return tl.where(is_present, tl.sqrt(squares) / scale_of_grads(grad_scale), float("nan"))


@kernel
def fold_norms(
    chunk_start,  # [rows + 1] int64
    grad,  # [terms, rows] int64: addresses, 0 where absent
    partial,  # [chunks, terms]
    norms,  # [rows, terms]
    grad_scale,  # [] float32
    rows: tl.int64,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,  # the power of 2 from TERMS on
):
    """Compute norms from the chunks' sums, a program per row. ``balance`` can do this too."""
    r = tl.program_id(0).to(tl.int64)
    term = tl.arange(0, WIDTH)
    is_present = tl.load(grad + term * rows + r, term < TERMS, other=0) != 0
    norm = row_norms(chunk_start, partial, grad_scale, r, term, is_present, TERMS, WIDTH)
    tl.store(norms + r * TERMS + term, norm, term < TERMS)
