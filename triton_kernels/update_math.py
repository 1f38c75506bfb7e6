"""The formulas of csrc/update_math.h in Triton, under the same names, for blocks of values.

Each stands here once for all of Triton. Where C++ branches, ``tl.where`` selects: it computes both sides, and neither
may divide by zero (the interpreter warns).
"""

import triton
import triton.language as tl

# Running norms at or below this count as zero: the term cannot be an anchor and is not scaled (published value).
TINY_NORM = tl.constexpr(1e-10)
INFINITY = tl.constexpr(float("inf"))

# How a running norm remembers, and what a layer's terms are balanced against: the codes of csrc/update_math.h.
CORRECTED, PEAK = tl.constexpr(1), tl.constexpr(2)  # a decaying peak is 3
FIRST, NO_ANCHOR = tl.constexpr(-1), tl.constexpr(-2)


@triton.jit
def quotient(a, b):
    """Return ``a / b``, rounded once: Triton's own division of float32 is approximate."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def root(x):
    """Return the square root, rounded once: Triton's own is approximate in float32, and takes subnormals for zero."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def has_started(norm_avg):
    """Return whether a running norm has started; it is NaN before."""
    return norm_avg == norm_avg


@triton.jit
def is_finite(x):
    """Return False for NaN (the norm of an absent gradient, too) and for infinities."""
    return tl.abs(x) < INFINITY


@triton.jit
def norm_decay(beta3, step, norms, C: tl.constexpr):
    """Return the decay of a layer's running norms at its step, from 1; corrected, it grows from 0 to beta3."""
    grown = beta3 * (1 - power(beta3, step - 1)) / (1 - power(beta3, step))
    return tl.where(norms == CORRECTED, grown, tl.where(norms == PEAK, 1.0, beta3)).to(C)


@triton.jit
def running_norm(norm_avg, norm, decay, first_nonzero, peak):
    """Return the running norm after a step whose gradient has the given norm. One that is not finite is left out."""
    left = decay * norm_avg
    moved = tl.where(peak, tl.where(norm > left, norm, left), left + (1 - decay) * norm)
    start = tl.where(first_nonzero, tl.where(norm > TINY_NORM, norm, norm_avg), norm)
    return tl.where(is_finite(norm), tl.where(has_started(norm_avg), moved, start), norm_avg)


@triton.jit
def anchor_of(norm_avg, anchor, WIDTH: tl.constexpr):
    """Return what a layer's terms are balanced against, of their running norms ``norm_avg`` [WIDTH] above TINY_NORM.

    That of the term at position ``anchor``, or the first, or their geometric mean, 0 where none is; or 1 without an
    anchor. The geometric mean also stands in for a term whose running norm is not above TINY_NORM.
    """
    term = tl.arange(0, WIDTH)
    is_active = norm_avg > TINY_NORM
    active = tl.sum(is_active.to(tl.int32), axis=0)
    logs = tl.sum(tl.log(tl.where(is_active, norm_avg, 1.0).to(tl.float64)), axis=0)
    mean = tl.where(active > 0, tl.exp(logs / tl.maximum(active, 1)), 0.0).to(norm_avg.dtype)
    first = tl.min(tl.where(is_active, term, WIDTH), axis=0)
    chosen = (term == tl.where(anchor == FIRST, first, anchor)) & is_active
    found = tl.sum(tl.where(chosen, norm_avg, 0.0), axis=0)
    return tl.where(anchor == NO_ANCHOR, 1.0, tl.where(found > 0, found, mean)).to(norm_avg.dtype)


@triton.jit
def term_scale(norm_avg, anchor, weight):
    """Return the factor that brings a term's running norm to the anchor's, times the user's weight."""
    is_active = norm_avg > TINY_NORM
    return tl.where(is_active, weight * quotient(anchor, tl.where(is_active, norm_avg, 1.0)), 1.0)


@triton.jit
def balanced_gradient(grad, scale, param, weight_decay):
    """Return h_k: the balanced gradient of one term, with weight decay in the published L2 form (once per term)."""
    return scale * grad + weight_decay * param


@triton.jit
def add_weighted(total, grad, weight):
    """Add the weighted gradient of one more term to the sum of those so far."""
    return total + weight * grad


@triton.jit
def first_moment(exp_avg, combined, beta1, one_minus_beta1):
    """Return m after a step: one for all terms. ``combined`` is the sum of h_k over the terms."""
    return beta1 * exp_avg + one_minus_beta1 * combined


@triton.jit
def second_moment(exp_avg_sq, h, beta2, one_minus_beta2):
    """Return v_k after a step: one per term, or one for all with the combined gradient as h."""
    return beta2 * exp_avg_sq + one_minus_beta2 * h * h


@triton.jit
def nan_max(a, b):
    """Return the larger of two numbers, NaN if either is (as torch.maximum)."""
    return tl.where((a >= b) | (a != a), a, b)


@triton.jit
def add_term(grad, scale, param, exp_avg_sq, combined, scalars):
    """Return the second moment of one term after a step, and ``combined`` with the term's h_k added.

    ``scalars`` are those of RowScalars in C++, without its factors.
    """
    grad_sign, _, _, beta2, one_minus_beta2, l2_decay = scalars
    h = balanced_gradient(grad, grad_sign * scale, param, l2_decay)
    return second_moment(exp_avg_sq, h, beta2, one_minus_beta2), combined + h


@triton.jit
def power(beta, step):
    """Return ``beta**step`` in float64, for beta in [0, 1); 0 for beta 0, whatever the step is."""
    return tl.where(beta > 0, tl.exp(step * tl.log(tl.where(beta > 0, beta, 1.0))), 0.0)


@triton.jit
def step_factors(lr, beta1, beta2, eps, decoupled_decay, step, grad_scale, C: tl.constexpr):
    """Return lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps, decay and 1 / grad_scale, in float64 until the end."""
    step_size = lr / (1 - power(beta1, step))
    inv_correction2 = 1 / tl.sqrt(1 - power(beta2, step))
    decay, unscale = lr * decoupled_decay, 1 / grad_scale
    return step_size.to(C), inv_correction2.to(C), eps.to(C), decay.to(C), unscale.to(C)


@triton.jit
def updated_param(param, exp_avg, largest, factors):
    """Return the parameter after a step. ``largest`` is the largest v_k over the terms, or their largest maximum."""
    step_size, inv_correction2, eps, decay, _ = factors
    change = quotient(step_size * exp_avg, root(largest) * inv_correction2 + eps) + decay * param
    return param - change  # one subtraction, so that the parameter is rounded once
