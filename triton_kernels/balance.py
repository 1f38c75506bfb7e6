"""Stage 2: running norms and scales from norms, and what the step multiplies by."""

import triton.language as tl

from .memory import FACTORS, GROUP_FIELDS, ROW_FIELDS, kernel
from .rows import advance_step
from .term_norms import row_norms
from .update_math import balance_row


@kernel
def balance(
    row,  # [rows] of Row
    group,  # [groups] of Group
    weight,  # [groups, terms] float64
    chunk_start,  # [rows + 1] int64
    grad,  # [terms, rows] int64: addresses, 0 where absent
    partial,  # [chunks, terms]; looked at with FOLD only
    factors,  # [rows] of StepFactors
    steps,  # [rows] float32
    norms,  # [rows, terms], as `running` and `scales`
    running,
    scales,
    rows: tl.int64,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,  # the power of 2 from TERMS on
    FOLD: tl.constexpr,  # whether to make the norms from the chunks' sums first
):
    """A program per row."""
    C: tl.constexpr = norms.dtype.element_ty
    r = tl.program_id(0).to(tl.int64)
    term = tl.arange(0, WIDTH)
    is_term = term < TERMS
    is_present = tl.load(grad + term * rows + r, is_term, other=0) != 0
    pair = r * TERMS + term
    if FOLD:
        norm = row_norms(chunk_start, partial, r, term, is_present, TERMS, WIDTH)
        tl.store(norms + pair, norm, is_term)
    else:
        norm = tl.load(norms + pair, is_term, other=float("nan"))
    number = tl.load(row + r * ROW_FIELDS + 3)
    of_group = group + number * GROUP_FIELDS
    weights = tl.load(weight + number * TERMS + term, is_term, other=0.0).to(C)
    before = tl.load(running + pair, is_term, other=0.0)
    beta3, first_nonzero = tl.load(of_group + 3).to(C), tl.load(of_group + 8) != 0
    after, scale = balance_row(norm, weights, beta3, first_nonzero, before, WIDTH)
    tl.store(running + pair, after, is_term)
    tl.store(scales + pair, scale, is_term)
    if tl.sum(is_present.to(tl.int32), axis=0) > 0:
        advance_step(steps + r, factors + r * FACTORS, of_group, C)
