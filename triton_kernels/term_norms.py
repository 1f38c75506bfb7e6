"""Stage 1: the sums of squares of each chunk of each term's gradient, which ``balance`` turns into norms."""

import triton
import triton.language as tl

from .memory import BLOCK, VECTOR, WIDE, chunk_of, kernel, load_grad, mask_of


@triton.jit
def squares(grad, begin, end, PARAM: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr):
    """The sum of squares of a chunk."""
    sums = tl.zeros([BLOCK], C)
    block = begin // BLOCK
    while block * BLOCK < end:
        g = load_grad(grad, block, mask_of(block, end, ALIGN), PARAM, C, ALIGN)
        sums += g * g
        block += 1
    return tl.sum(sums, axis=0)


@kernel
def term_norms(
    chunk,  # [programs] of Chunk
    grad,  # [terms, rows] int64: addresses, 0 where absent
    partial,  # [chunks, terms] of the arithmetic type
    rows: tl.int64,
    TERMS: tl.constexpr,
    PARAM: tl.constexpr,  # the type of the parameters of these chunks
):
    """A program per chunk."""
    C: tl.constexpr = partial.dtype.element_ty
    r, begin, end, number = chunk_of(chunk)
    out = partial + number * TERMS
    for k in range(TERMS):
        address = tl.load(grad + k * rows + r)
        if address != 0:
            if ((address & ~WIDE) | end) % VECTOR == 0:
                tl.store(out + k, squares(address, begin, end, PARAM, C, VECTOR))
            else:
                tl.store(out + k, squares(address, begin, end, PARAM, C, 1))
