"""The dot products of the terms' gradients: sums over chunks, then over the chunks of a row."""

import triton
import triton.language as tl

from .memory import CHUNK, WIDE, chunk_of, kernel
from .rows import row_sums

TILE = tl.constexpr(16384)  # products that a program holds at once


@triton.jit
def products(
    address, is_present, index, end, TYPE: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """[WIDTH, WIDTH] dot products over a chunk, of gradients of TYPE at the addresses [WIDTH]; 0 where absent."""
    ELEMENTS: tl.constexpr = TILE // (WIDTH * WIDTH) if TILE > WIDTH * WIDTH else 1
    sums = tl.zeros([WIDTH, WIDTH], C)
    first = index * CHUNK
    while first < end:
        i = first + tl.arange(0, ELEMENTS)
        mask = is_present[:, None] & (i < end)[None, :]
        g = tl.load(address.to(tl.pointer_type(TYPE))[:, None] + i[None, :], mask, other=0.0).to(C)
        sums += tl.sum(g[:, None, :] * g[None, :, :], axis=2)
        first += ELEMENTS
    return sums


@kernel
def term_gram(
    chunk,  # [programs, 2] int64: row, and index in the row
    row,  # [rows] of Row
    chunk_start,  # [rows + 1] int64
    grad,  # [terms, rows] int64: addresses, 0 where absent
    partial,  # [chunks, terms * (terms + 1) / 2] of the arithmetic type: the lower triangle, row by row
    rows: tl.int64,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,  # the power of 2 from TERMS on
    PARAM: tl.constexpr,  # the type of the parameters of these chunks
):
    """A program per chunk; each gradient is read once."""
    C: tl.constexpr = partial.dtype.element_ty
    PAIRS: tl.constexpr = TERMS * (TERMS + 1) // 2
    r, index, end = chunk_of(chunk, row)
    term = tl.arange(0, WIDTH)
    address = tl.load(grad + term * rows + r, term < TERMS, other=0)
    is_present = address != 0
    if PARAM == C:
        sums = products(address, is_present, index, end, PARAM, C, WIDTH)
    else:
        if tl.max(address & WIDE, axis=0) != 0:  # of all gradients of a row or of none
            sums = products(address & ~WIDE, is_present, index, end, C, C, WIDTH)
        else:
            sums = products(address, is_present, index, end, PARAM, C, WIDTH)
    pair = term[:, None] * (term[:, None] + 1) // 2 + term[None, :]
    lower = (term[None, :] <= term[:, None]) & (term < TERMS)[:, None]
    tl.store(partial + (tl.load(chunk_start + r) + index) * PAIRS + pair, sums, lower)


@kernel
def fold_gram(
    chunk_start,  # [rows + 1] int64
    partial,  # as term_gram left it
    gram,  # [rows, terms, terms] float64
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A program per row."""
    r = tl.program_id(0).to(tl.int64)
    element = tl.arange(0, WIDTH * WIDTH)
    j, k = element // WIDTH, element % WIDTH
    mask = (j < TERMS) & (k < TERMS)
    larger, smaller = tl.maximum(j, k), tl.minimum(j, k)
    pair = larger * (larger + 1) // 2 + smaller
    first, last = tl.load(chunk_start + r), tl.load(chunk_start + r + 1)
    sums = row_sums(partial, first, last, pair, mask, TERMS * (TERMS + 1) // 2, WIDTH * WIDTH)
    tl.store(gram + (r * TERMS + j) * TERMS + k, sums, mask)
