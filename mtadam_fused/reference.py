"""MTAdam and CombinedAdam in plain PyTorch: the definition that every backend is tested against.

The formulas come first, under the names of csrc/update_math.h and triton_kernels/update_math.py, where each stands once
more. The kernels follow, under the names that they have in every backend.

MTAdam has three stages, for L parameters (layers) and K loss terms, as in algorithm 1 of Malkiel and Wolf, "MTAdam:
Automatic Balancing of Multiple Training Loss Terms" (arXiv 2006.14683). The K first moments of the paper share beta1
and the step, and only their sum is used, so one is kept. CombinedAdam has :func:`term_gram`, then a rule of
``mtadam_fused.rules`` in the place of stage 2, then :func:`combined_adam`.

The arithmetic is float64 for float64 parameters and float32 for all others; dot products are float64. Nothing waits for
a device.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TINY_NORM = 1e-10  # running norms at or below it count as zero: no anchor, no scaling (published value)

# How a running norm remembers, and what a layer's terms are balanced against if not a term at some position. The codes
# are those of csrc/update_math.h.
AVERAGE, CORRECTED, PEAK, DECAYING_PEAK = 0, 1, 2, 3
FIRST, NO_ANCHOR, GEOMETRIC_MEAN = -1, -2, -3


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of moments and sums for parameters of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# -- formulas of stage 2, for any number of (layer, term) pairs --------------------------------------------------------


def has_started(norm_avg: Tensor) -> Tensor:
    """Return where a running norm has started; it is NaN before."""
    return ~norm_avg.isnan()


def is_finite(x: Tensor) -> Tensor:
    """Return where ``x`` is neither NaN (the norm of an absent gradient, too) nor infinite."""
    return x.isfinite()


def norm_decay(beta3: Tensor, step: Tensor, norms: Tensor) -> Tensor:
    """Return the decay of a layer's running norms at its step, from 1; in float64.

    With bias correction it grows from 0 to ``beta3``: the running norm of a term that is there from the first step is
    then the average started at zero, divided by ``1 - beta3**step``.

    Args:
        norms: how running norms remember, a code.
    """
    grown = beta3 * (1 - beta3 ** (step - 1)) / (1 - beta3**step)
    return torch.where(norms == CORRECTED, grown, torch.where(norms == PEAK, 1.0, beta3))


def running_norm(norm_avg: Tensor, norm: Tensor, decay: Tensor, first_nonzero: Tensor, peak: Tensor) -> Tensor:
    """Return the running norm after a step whose gradient has the given norm.

    A norm that is not finite is left out, so that one bad gradient does not spoil all steps after it. With
    ``first_nonzero`` the running norm starts at the first norm above :data:`TINY_NORM` instead of the first one. With
    ``peak`` it is the norm, or what the decay has left of it if that is larger.
    """
    start = torch.where(first_nonzero & ~(norm > TINY_NORM), norm_avg, norm)
    left = decay * norm_avg
    moved = torch.where(peak, torch.maximum(left, norm), left + (1 - decay) * norm)
    return torch.where(is_finite(norm), torch.where(has_started(norm_avg), moved, start), norm_avg)


def anchor_of(norm_avg: Tensor, anchor: Tensor) -> Tensor:
    """Return ``[L, 1]``: what each layer's terms are balanced against.

    Of their running norms above :data:`TINY_NORM` it is that of the term at position ``anchor``, or the first, or their
    geometric mean, 0 where none is; or 1 without an anchor. The geometric mean also stands in for a term whose running
    norm is not above TINY_NORM.

    Args:
        norm_avg: ``[L, K]`` running norms.
        anchor: ``[L, 1]`` int64: the position of a term, or a code.
    """
    is_active = norm_avg > TINY_NORM
    logs = norm_avg.double().where(is_active, 1.0).log()
    active = is_active.sum(dim=1, keepdim=True)
    mean = (logs.sum(dim=1, keepdim=True) / active.clamp(min=1)).exp().where(active > 0, 0.0).to(norm_avg.dtype)
    first = is_active.int().argmax(dim=1, keepdim=True)
    position = torch.where(anchor == FIRST, first, anchor.clamp(min=0))
    has_position = is_active.gather(1, position) & (anchor != GEOMETRIC_MEAN)
    return torch.where(has_position, norm_avg.gather(1, position), mean).where(anchor != NO_ANCHOR, 1.0)


def term_scale(norm_avg: Tensor, anchor: Tensor, weight: Tensor) -> Tensor:
    """Return the factor that brings a term's running norm to the anchor's, times the user's weight."""
    return torch.where(norm_avg > TINY_NORM, weight * (anchor / norm_avg), 1.0)


# -- formulas of stage 3, for all elements of one parameter ------------------------------------------------------------


class StepFactors(NamedTuple):
    """The factors of a step."""

    step_size: Tensor  # lr / (1 - beta1**t)
    correction2: Tensor  # sqrt(1 - beta2**t)
    eps: float
    decay: float | Tensor  # lr * weight_decay where the decay is decoupled, else 0


class RowScalars(NamedTuple):
    """The scalars of one parameter's step."""

    grad_sign: float  # -1 to maximize, else 1
    beta1: float
    beta2: float
    l2_decay: float  # added to the gradient as l2_decay * param
    factors: StepFactors


def balanced_gradient(grad: Tensor, scale: Tensor | float, param: Tensor, weight_decay: float) -> Tensor:
    """Return h_k: the balanced gradient of one term, with weight decay in the published L2 form (once per term)."""
    return scale * grad + weight_decay * param


def add_weighted(total: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Add the weighted gradient of one more term to the sum of those so far."""
    return total + weight * grad


def first_moment(exp_avg: Tensor, combined: Tensor, beta1: float) -> Tensor:
    """Return m after a step: one for all terms. ``combined`` is the sum of h_k over the terms."""
    return beta1 * exp_avg + (1 - beta1) * combined


def second_moment(exp_avg_sq: Tensor, h: Tensor, beta2: float) -> Tensor:
    """Return v_k after a step: one per term, or one for all with the combined gradient as h."""
    return beta2 * exp_avg_sq + (1 - beta2) * h * h


def nan_max(a: Tensor, b: Tensor) -> Tensor:
    """Return the larger of two numbers, NaN if either is."""
    return torch.maximum(a, b)


def add_term(
    grad: Tensor, scale: Tensor, param: Tensor, exp_avg_sq: Tensor, combined: Tensor, row: RowScalars
) -> tuple[Tensor, Tensor]:
    """Return the second moment of one term after a step, and ``combined`` with the term's h_k added."""
    h = balanced_gradient(grad, row.grad_sign * scale, param, row.l2_decay)
    return second_moment(exp_avg_sq, h, row.beta2), combined + h


def step_factors(
    lr: float | Tensor, beta1: float, beta2: float, eps: float, decoupled_decay: float, step: Tensor
) -> StepFactors:
    """Return what a step multiplies by, in the dtype of ``step``, the number of the step (from 1)."""
    step_size, correction2 = lr / bias_correction(beta1, step), bias_correction(beta2, step).sqrt()
    return StepFactors(step_size, correction2, eps, lr * decoupled_decay)


def bias_correction(beta: float, step: Tensor) -> Tensor:
    """Return ``1 - beta**step`` without the digits that the subtraction loses in float32."""
    return -torch.expm1(step * (math.log(beta) if beta > 0 else -math.inf))


def updated_param(param: Tensor, exp_avg: Tensor, largest: Tensor, factors: StepFactors) -> Tensor:
    """Return the parameter after a step.

    Args:
        exp_avg: the first moment after the step.
        largest: the largest second moment over the terms; with AMSGrad the largest maximum.
    """
    change = factors.step_size * exp_avg / (largest.sqrt() / factors.correction2 + factors.eps)
    return param - (change + factors.decay * param)  # one subtraction, so that the parameter is rounded once


# -- kernels -----------------------------------------------------------------------------------------------------------


def term_norms(grads: Sequence[Sequence[Tensor | None]], like: Tensor) -> Tensor:
    """Stage 1: compute the Euclidean norms of the gradients.

    Args:
        grads: ``[L][K]`` gradients, None where a term is absent.
        like: a tensor whose dtype and device the result takes.

    Returns:
        ``[L, K]`` norms, NaN where absent.
    """
    absent = torch.full((), math.nan, dtype=like.dtype, device=like.device)
    rows = [
        torch.stack([absent if g is None else g.to(like.dtype).square().sum().sqrt() for g in row]) for row in grads
    ]
    return torch.stack(rows)


class BalanceRule(NamedTuple):
    """How each layer is balanced; all ``[L, 1]``."""

    beta3: Tensor  # float64, decay of the running norms
    first_nonzero: Tensor  # bool, whether a running norm starts at the first norm above TINY_NORM
    norms: Tensor  # int64, how a running norm remembers: a code
    anchor: Tensor  # int64, what the terms are balanced against: the position of a term, or a code


def balance(
    norms: Tensor, norm_avg: Tensor, weights: Tensor, steps: Tensor, rule: BalanceRule
) -> tuple[Tensor, Tensor]:
    """Stage 2: advance the running norms, and compute each gradient's scale.

    All terms of a layer are brought to the running norm of its anchor (see :func:`anchor_of`), times the user's weight.
    Norms that are not finite (NaN where a term is absent) leave the running norm as it was.

    Args:
        norms: ``[L, K]`` of this step.
        norm_avg: ``[L, K]`` running norms before this step, NaN where none has started.
        weights: ``[L, K]`` term weights.
        steps: ``[L]`` numbers of the layers' steps, from 1.
        rule: how to balance.

    Returns:
        ``[L, K]`` running norms after this step, and ``[L, K]`` scales.
    """
    decay = norm_decay(rule.beta3, steps.double().unsqueeze(1), rule.norms).to(norms.dtype)
    norm_avg = running_norm(norm_avg, norms, decay, rule.first_nonzero, rule.norms >= PEAK)
    return norm_avg, term_scale(norm_avg, anchor_of(norm_avg, rule.anchor), weights)


def mtadam_update(
    param: Tensor,
    grads: Sequence[Tensor | None],
    scales: Sequence[Tensor] | Tensor,
    exp_avg: Tensor,
    exp_avg_sqs: Sequence[Tensor | None],
    max_exp_avg_sqs: Sequence[Tensor | None],
    row: RowScalars,
) -> Tensor:
    """Stage 3, for one parameter: make Adam's step on the sum of the balanced gradients.

    The largest of the second moments bounds it. Changes ``param``, ``exp_avg``, ``exp_avg_sqs`` and ``max_exp_avg_sqs``
    in place.

    Args:
        param: any shape.
        grads: ``[K]``, of the shape of ``param``; None where a term is absent, whose second moment then stays as it is
            and still bounds the step.
        scales: ``[K]`` scalars of stage 2.
        exp_avg: the first moment, in the arithmetic dtype.
        exp_avg_sqs: ``[K]`` second moments, None where the term never reached the parameter.
        max_exp_avg_sqs: ``[K]`` their maxima so far where AMSGrad is on, else None.
        row: the parameter's scalars.

    Returns:
        The sum over the terms of the balanced gradients, in the arithmetic dtype.
    """
    p = param.to(exp_avg.dtype)
    combined, largest = torch.zeros_like(p), torch.zeros_like(p)
    for grad, scale, exp_avg_sq, max_exp_avg_sq in zip(grads, scales, exp_avg_sqs, max_exp_avg_sqs, strict=True):
        if exp_avg_sq is None:
            continue
        if grad is not None:
            advanced, combined = add_term(grad.to(p.dtype), scale, p, exp_avg_sq, combined, row)
            exp_avg_sq.copy_(advanced)
        largest = nan_max(largest, raise_max(max_exp_avg_sq, exp_avg_sq))
    finish_step(param, combined, exp_avg, largest, row)
    return combined


def term_gram(grads: Sequence[Sequence[Tensor | None]], device: torch.device) -> Tensor:
    """Compute the dot products of the terms' gradients.

    Args:
        grads: ``[L][K]`` gradients, None where a term is absent.
        device: where to leave the result.

    Returns:
        ``[L, K, K]`` float64, 0 where either term is absent. Made of float64 products: those of large float32 gradients
        would overflow, and those of small ones vanish.
    """
    gram = torch.zeros(len(grads), len(grads[0]), len(grads[0]), dtype=torch.float64, device=device)
    for row, of_row in zip(gram, grads, strict=True):
        present = [(k, grad.double()) for k, grad in enumerate(of_row) if grad is not None]
        for k, grad in present:
            for j, other in present:
                if j <= k:
                    row[k, j] = row[j, k] = (grad * other).sum()
    return gram


def combined_adam(
    param: Tensor,
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor] | Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    row: RowScalars,
) -> Tensor:
    """Make Adam's step, for one parameter, on the weighted sum of the terms' gradients.

    Changes ``param``, ``exp_avg``, ``exp_avg_sq`` and ``max_exp_avg_sq`` in place.

    Args:
        param: any shape.
        grads: ``[K]``, of the shape of ``param``; None where a term is absent.
        weights: ``[K]`` scalars.
        exp_avg, exp_avg_sq: the moments, in the arithmetic dtype.
        max_exp_avg_sq: the largest second moment so far where AMSGrad is on, else None.
        row: the parameter's scalars.

    Returns:
        The weighted sum of the gradients, in the arithmetic dtype; without weight decay.
    """
    p = param.to(exp_avg.dtype)
    combined = torch.zeros_like(p)
    for grad, weight in zip(grads, weights, strict=True):
        if grad is not None:
            combined = add_weighted(combined, grad.to(p.dtype), weight)
    gradient = balanced_gradient(combined, row.grad_sign, p, row.l2_decay)
    exp_avg_sq.copy_(second_moment(exp_avg_sq, gradient, row.beta2))
    finish_step(param, gradient, exp_avg, raise_max(max_exp_avg_sq, exp_avg_sq), row)
    return combined


def raise_max(max_exp_avg_sq: Tensor | None, exp_avg_sq: Tensor) -> Tensor:
    """Return what bounds the step: a second moment, or its maximum so far, which is raised in place."""
    return exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq.copy_(nan_max(max_exp_avg_sq, exp_avg_sq))


def finish_step(param: Tensor, gradient: Tensor, exp_avg: Tensor, largest: Tensor, row: RowScalars) -> None:
    """Advance ``exp_avg`` by ``gradient``, and step ``param``; changes both in place."""
    exp_avg.copy_(first_moment(exp_avg, gradient, row.beta1))
    param.copy_(updated_param(param.to(exp_avg.dtype), exp_avg, largest, row.factors))
