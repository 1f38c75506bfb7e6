"""Stage 2: running norms and scales from norms, and the step's factors."""

import triton.language as tl

from .fields import FACTORS_SIZE, GROUP_ANCHOR, GROUP_BETA3, GROUP_FIRST_NONZERO, GROUP_NORMS, ROW_GROUP, ROW_SIZE
from .memory import kernel
from .rows import begin_row, group_of, is_skipped
from .term_norms import row_norms
from .update_math import PEAK, anchor_of, norm_decay, running_norm, term_scale


@kernel
def balance(
    row,  # [rows] of Row
    group,  # [groups] of Group
    weight,  # [groups, terms] float64
    chunk_start,  # [rows + 1] int64
    grad,  # [terms, rows] int64: addresses, 0 where absent
    partial,  # [chunks, terms]; read with FOLD only
    factors,  # [rows] of StepFactors
    steps,  # [rows] float32
    norms,  # [rows, terms], as `norm_avg` and `scales`
    norm_avg,
    scales,
    grad_scale,  # [] float32
    found_inf,  # [] float32
    rows: tl.int64,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,  # the power of 2 from TERMS on
    FOLD: tl.constexpr,  # whether to compute the norms from the chunks' sums first
):
    """Run a program per row."""
    C: tl.constexpr = norms.dtype.element_ty
    r = tl.program_id(0).to(tl.int64)
    term = tl.arange(0, WIDTH)
    is_term = term < TERMS
    is_present = tl.load(grad + term * rows + r, is_term, other=0) != 0
    pair = r * TERMS + term
    if FOLD:
        norm = row_norms(chunk_start, partial, grad_scale, r, term, is_present, TERMS, WIDTH).to(C)
        tl.store(norms + pair, norm, is_term)
    else:
        norm = tl.load(norms + pair, is_term, other=float("nan"))
    own_group = group_of(row, group, r)
    weights = tl.load(weight + tl.load(row + r * ROW_SIZE + ROW_GROUP) * TERMS + term, is_term, other=0.0).to(C)
    before = tl.load(norm_avg + pair, is_term, other=0.0)
    beta3, first_nonzero = tl.load(own_group + GROUP_BETA3), tl.load(own_group + GROUP_FIRST_NONZERO) != 0
    norms_kind, anchor = tl.load(own_group + GROUP_NORMS), tl.load(own_group + GROUP_ANCHOR)
    decay = norm_decay(beta3, tl.load(steps + r).to(tl.float64) + 1, norms_kind, C)
    after = running_norm(before, norm, decay, first_nonzero, norms_kind >= PEAK)
    scale = term_scale(after, anchor_of(after, anchor, WIDTH), weights)
    if not is_skipped(found_inf):
        tl.store(norm_avg + pair, after, is_term)
        tl.store(scales + pair, scale, is_term)
        if tl.sum(is_present.to(tl.int32), axis=0) > 0:
            begin_row(steps + r, factors + r * FACTORS_SIZE, own_group, grad_scale, C)
