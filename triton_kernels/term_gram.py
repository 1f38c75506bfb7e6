"""The dot products of the terms' gradients: sums over chunks, then over the chunks of a row.

In float64: products of large float32 gradients would overflow, and those of small ones vanish.
"""

import triton
import triton.language as tl

from .memory import WIDE, chunk_of, kernel
from .rows import row_sums, scale_of_grads

TILE = tl.constexpr(1 << 13)  # products that a program holds at once


@triton.jit
def products(address, is_present, begin, end, TYPE: tl.constexpr, WIDTH: tl.constexpr):
    """Return [WIDTH, WIDTH] dot products over a chunk of gradients of TYPE at ``address`` [WIDTH]; 0 where absent."""
    ELEMENTS: tl.constexpr = TILE // (WIDTH * WIDTH) if TILE > WIDTH * WIDTH else 1
    sums = tl.zeros([WIDTH, WIDTH, ELEMENTS], tl.float64)
    first = begin
    while first < end:
        i = first + tl.arange(0, ELEMENTS)
        mask = is_present[:, None] & (i < end)[None, :]
        g = tl.load(address.to(tl.pointer_type(TYPE))[:, None] + i[None, :], mask, other=0.0).to(tl.float64)
        sums += g[:, None, :] * g[None, :, :]
        first += ELEMENTS
    return tl.sum(sums, axis=2)


@kernel
def term_gram(
    chunk,  # [programs] of Chunk
    grad,  # [terms, rows] int64: addresses, 0 where absent
    partial,  # [chunks, terms * (terms + 1) / 2] float64: the lower triangle, row by row
    rows: tl.int64,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,  # the power of 2 from TERMS on
    PARAM: tl.constexpr,  # the type of the parameters of these chunks
):
    """Run a program per chunk, which reads each gradient once."""
    PAIRS: tl.constexpr = TERMS * (TERMS + 1) // 2
    r, begin, end, number = chunk_of(chunk)
    term = tl.arange(0, WIDTH)
    address = tl.load(grad + term * rows + r, term < TERMS, other=0)
    is_present = address != 0
    if PARAM.primitive_bitwidth >= 32:
        sums = products(address, is_present, begin, end, PARAM, WIDTH)
    else:
        if tl.max(address & WIDE, axis=0) != 0:  # of all gradients of a row or of none
            sums = products(address & ~WIDE, is_present, begin, end, tl.float32, WIDTH)
        else:
            sums = products(address, is_present, begin, end, PARAM, WIDTH)
    pair = term[:, None] * (term[:, None] + 1) // 2 + term[None, :]
    lower = (term[None, :] <= term[:, None]) & (term < TERMS)[:, None]
    tl.store(partial + number * PAIRS + pair, sums, lower)


@kernel
def fold_gram(
    chunk_start,  # [rows + 1] int64
    partial,  # as term_gram left it
    gram,  # [rows, terms, terms] float64
    grad_scale,  # [] float32
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Run a program per row."""
    r = tl.program_id(0).to(tl.int64)
    element = tl.arange(0, WIDTH * WIDTH)
    j, k = element // WIDTH, element % WIDTH
    mask = (j < TERMS) & (k < TERMS)
    high, low = tl.maximum(j, k), tl.minimum(j, k)
    pair = high * (high + 1) // 2 + low
    first, last = tl.load(chunk_start + r), tl.load(chunk_start + r + 1)
    sums = row_sums(partial, first, last, pair, mask, TERMS * (TERMS + 1) // 2, WIDTH * WIDTH)
    scale = scale_of_grads(grad_scale)
    tl.store(gram + (r * TERMS + j) * TERMS + k, sums / (scale * scale), mask)
