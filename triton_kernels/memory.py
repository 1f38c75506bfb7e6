"""Shared by the kernels: compilation, chunks of rows, and elements at addresses.

A *row* is one parameter (see csrc/launch.h for the tables), cut into chunks of some whole blocks. A program works on
one chunk, block by block; the blocks of a row are numbered from 0.
"""

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from .fields import CHUNK_BEGIN, CHUNK_END, CHUNK_NUMBER, CHUNK_ROW, CHUNK_SIZE

BLOCK = tl.constexpr(1024)  # elements that a program holds at once: 4 a thread, 16 bytes of float32
WARPS = 8

WIDE = tl.constexpr(1)  # the lowest bit of a gradient's address: float32 though its parameter is narrower
VECTOR = tl.constexpr(16)  # bytes of an address, and elements of a chunk, whose multiples are read in vectors


def kernel(function: Callable[..., Any]) -> Any:
    """Apply ``triton.jit``; compile once for all values, sizes and alignments of arguments that are not constexpr."""
    arguments = inspect.signature(function).parameters.values()
    runtime = [argument.name for argument in arguments if argument.annotation is not tl.constexpr]
    return triton.jit(function, do_not_specialize=runtime)


@triton.jit
def chunk_of(chunk):
    """Return a program's chunk: its row, the elements [begin, end) there, and its number."""
    own = chunk + CHUNK_SIZE * tl.program_id(0)
    return tl.load(own + CHUNK_ROW), tl.load(own + CHUNK_BEGIN), tl.load(own + CHUNK_END), tl.load(own + CHUNK_NUMBER)


@triton.jit
def count_mask(count, SIZE: tl.constexpr, ALIGN: tl.constexpr):
    """Return the first ``count`` of SIZE elements. The arithmetic shows the compiler that ALIGN divides the number."""
    return tl.arange(0, SIZE) < tl.minimum(count, SIZE).to(tl.int32) // ALIGN * ALIGN


@triton.jit
def mask_of(block, end, ALIGN: tl.constexpr):
    """Return which elements of a block come before ``end``, which ALIGN divides."""
    return count_mask(end - block * BLOCK, BLOCK, ALIGN)


@triton.jit
def elements(address, block, TYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Return pointers to the elements of a block of a tensor of TYPE, whose address is a multiple of ALIGN."""
    first = tl.multiple_of(address.to(tl.pointer_type(TYPE)), ALIGN)  # the hint is for this cast alone
    return first + block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load_or_zeros(address, block, mask, TYPE: tl.constexpr, C: tl.constexpr, ALIGN: tl.constexpr):
    """Load a block of a tensor of TYPE, in the arithmetic type C; 0 outside of the mask, and where the address is 0.

    A mask and no branch, so that the loads after it need not wait for this one.
    """
    return tl.load(elements(address, block, TYPE, ALIGN), mask & (address != 0), other=0.0).to(C)
