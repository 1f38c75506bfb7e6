"""The formulas in Triton: those of csrc/update_math.h, under the same names, for blocks of values.

Nothing else in Triton states them. Where C++ branches, ``tl.where`` selects: both sides are computed, and neither may
divide by zero (the interpreter warns).
"""

import triton
import triton.language as tl

# Running norms at or below this count as zero: the term cannot be an anchor and is not scaled (published value).
TINY_NORM = tl.constexpr(1e-10)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def quotient(a, b):
    """``a / b``, rounded once: Triton's own division of float32 is approximate."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def root(x):
    """The square root, rounded once: Triton's own of float32 is approximate, and takes subnormals for zero."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def has_started(running):
    """False for a running norm that has not started yet, which is NaN."""
    return running == running


@triton.jit
def is_finite(x):
    """False for NaN (also that of an absent gradient) and for infinities."""
    return tl.abs(x) < INFINITY


@triton.jit
def running_norm(running, norm, beta3, first_nonzero):
    """The running norm after a step whose gradient has the given norm; one that is not finite is left out."""
    advanced = beta3 * running + (1 - beta3) * norm
    first = tl.where(first_nonzero, tl.where(norm > TINY_NORM, norm, running), norm)
    return tl.where(is_finite(norm), tl.where(has_started(running), advanced, first), running)


@triton.jit
def term_scale(running, anchor, weight):
    """The factor that brings one term's running norm to the anchor's, times the user's weight."""
    is_heard = running > TINY_NORM
    return tl.where(is_heard, weight * quotient(anchor, tl.where(is_heard, running, 1.0)), 1.0)


@triton.jit
def balance_row(norm, weight, beta3, first_nonzero, running, WIDTH: tl.constexpr):
    """Stage 2 for one layer: its running norms [WIDTH] after the step, and the scales."""
    term = tl.arange(0, WIDTH)
    running = running_norm(running, norm, beta3, first_nonzero)
    anchor_term = tl.min(tl.where(running > TINY_NORM, term, WIDTH), axis=0)
    anchor = tl.sum(tl.where(term == anchor_term, running, 0.0), axis=0)
    return running, term_scale(running, anchor, weight)


@triton.jit
def balanced_gradient(grad, scale, param, weight_decay):
    """h_k: the balanced gradient of one term, with weight decay in the published L2 form (once per term)."""
    return scale * grad + weight_decay * param


@triton.jit
def add_weighted(sum_so_far, grad, weight):
    """The sum of weighted gradients so far, with one term's more."""
    return sum_so_far + weight * grad


@triton.jit
def first_moment(exp_avg, combined, beta1, one_minus_beta1):
    """m: one for all terms. ``combined`` is the sum of h_k over the terms."""
    return beta1 * exp_avg + one_minus_beta1 * combined


@triton.jit
def second_moment(exp_avg_sq, h, beta2, one_minus_beta2):
    """v_k: one per term; in CombinedAdam one for all, with h the combined gradient."""
    return beta2 * exp_avg_sq + one_minus_beta2 * h * h


@triton.jit
def larger(a, b):
    """The larger of two numbers, NaN if either is (as torch.maximum)."""
    return tl.where((a >= b) | (a != a), a, b)


@triton.jit
def power(beta, step):
    """``beta**step`` in float64, for beta in [0, 1) and step from 1."""
    return tl.where(beta > 0, tl.exp(step * tl.log(tl.where(beta > 0, beta, 1.0))), 0.0)


@triton.jit
def step_factors(lr, beta1, beta2, eps, decoupled_decay, step, C: tl.constexpr):
    """What a step multiplies by, in float64 until the end: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), eps, decay."""
    step_size = lr / (1 - power(beta1, step))
    inv_correction2 = 1 / tl.sqrt(1 - power(beta2, step))
    return step_size.to(C), inv_correction2.to(C), eps.to(C), (lr * decoupled_decay).to(C)


@triton.jit
def updated_param(param, exp_avg, largest, factors):
    """The parameter after the step. ``largest`` is the largest v_k (amsgrad: the largest maximum) over the terms."""
    step_size, inv_correction2, eps, decay = factors
    change = quotient(step_size * exp_avg, root(largest) * inv_correction2 + eps) + decay * param
    return param - change  # one subtraction, so that the parameter is rounded once
