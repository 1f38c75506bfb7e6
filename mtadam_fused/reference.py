"""MTAdam and CombinedAdam in plain PyTorch: the definition that every backend is held to.

MTAdam has three stages, for L parameters (layers) and K loss terms, as in algorithm 1 of Malkiel and Wolf, "MTAdam:
Automatic Balancing of Multiple Training Loss Terms" (arXiv 2006.14683). The K first moments of the paper share beta1
and the step, and only their sum is used, so one is kept. CombinedAdam has :func:`term_gram`, then a rule of
``mtadam_fused.rules`` in the place of stage 2, then :func:`combined_adam`.

The arithmetic is float64 for float64 parameters and float32 for all others; nothing waits for a device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TINY_NORM = 1e-10  # running norms at or below it count as zero: no anchor, no scaling (published value)


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    """The type that moments are kept and sums are made in for parameters of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def term_norms(grads: Sequence[Sequence[Tensor | None]], like: Tensor) -> Tensor:
    """Stage 1: Euclidean norms of the gradients.

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


def balance(
    norms: Tensor, running: Tensor, weights: Tensor, beta3: Tensor, first_nonzero: Tensor
) -> tuple[Tensor, Tensor]:
    """Stage 2: advances the running norms and gives each gradient's scale.

    The anchor of a layer is its first term whose running norm is above :data:`TINY_NORM`; the others are brought to the
    anchor's running norm, times the user's weight. Norms that are not finite (NaN where a term is absent) leave the
    running norm as it was.

    Args:
        norms: ``[L, K]`` of this step.
        running: ``[L, K]`` before this step, NaN where none has started.
        weights: ``[L, K]`` term weights.
        beta3: ``[L, 1]`` decay of the running norms.
        first_nonzero: ``[L, 1]`` bool; a running norm starts at the first norm above TINY_NORM, not at the first one.

    Returns:
        ``[L, K]`` running norms after this step, and ``[L, K]`` scales.
    """
    waiting = first_nonzero & ~(norms > TINY_NORM)
    started = torch.where(running.isnan(), norms.masked_fill(waiting, math.nan), beta3 * running + (1 - beta3) * norms)
    running = torch.where(norms.isfinite(), started, running)
    heard = running > TINY_NORM
    first = heard.int().argmax(dim=1, keepdim=True)  # 0 where no term is heard: then no scale uses it
    scales = torch.where(heard, weights * (running.gather(1, first) / running), 1.0)
    return running, scales


def mtadam_update(
    param: Tensor,
    grads: Sequence[Tensor | None],
    scales: Sequence[Tensor] | Tensor,
    exp_avg: Tensor,
    exp_avg_sqs: Sequence[Tensor | None],
    max_exp_avg_sqs: Sequence[Tensor | None],
    step: Tensor,
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    decoupled_weight_decay: bool,
) -> Tensor:
    """Stage 3, for one parameter: Adam's step on the sum of the balanced gradients.

    The largest of the second moments bounds it. Changes ``param``, ``exp_avg``, ``exp_avg_sqs`` and ``max_exp_avg_sqs``
    in place.

    Args:
        param: any shape.
        grads: ``[K]``, of the shape of ``param``; None where a term is absent, whose second moment then stays as it is
            and still bounds the step.
        scales: ``[K]`` scalars of stage 2.
        exp_avg: the first moment, in the arithmetic type.
        exp_avg_sqs: ``[K]`` second moments, None where the term never reached the parameter.
        max_exp_avg_sqs: ``[K]`` their maxima so far where AMSGrad is on, else None.
        step: this step's number, from 1, a scalar.
        lr: learning rate.
        weight_decay: added to every balanced gradient as ``weight_decay * param``, or with ``decoupled_weight_decay``
            applied to the parameter once, before the step, as AdamW does.

    Returns:
        The sum over the terms of the balanced gradients, in the arithmetic type.
    """
    p = param.to(exp_avg.dtype)
    l2_decay = 0.0 if decoupled_weight_decay else weight_decay
    combined, largest = torch.zeros_like(p), torch.zeros_like(p)
    for grad, scale, exp_avg_sq, maximum in zip(grads, scales, exp_avg_sqs, max_exp_avg_sqs, strict=True):
        if exp_avg_sq is None:
            continue
        if grad is not None:
            h = (-scale if maximize else scale) * grad.to(p.dtype) + l2_decay * p
            combined += h
            exp_avg_sq.copy_(beta2 * exp_avg_sq + (1 - beta2) * h * h)
        bound = exp_avg_sq if maximum is None else maximum.copy_(torch.maximum(maximum, exp_avg_sq))
        largest = torch.maximum(largest, bound)
    decay = weight_decay if decoupled_weight_decay else 0.0
    advance(param, combined, exp_avg, largest, step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, decoupled_decay=decay)
    return combined


def term_gram(grads: Sequence[Sequence[Tensor | None]], like: Tensor) -> Tensor:
    """Dot products of the terms' gradients.

    Args:
        grads: ``[L][K]`` gradients, None where a term is absent.
        like: a tensor whose dtype the products are made in; they are summed in float64.

    Returns:
        ``[L, K, K]`` float64 on the device of ``like``, 0 where either term is absent.
    """
    gram = torch.zeros(len(grads), len(grads[0]), len(grads[0]), dtype=torch.float64, device=like.device)
    for row, of_row in zip(gram, grads, strict=True):
        for k, grad in enumerate(of_row):
            for j, other in enumerate(of_row[: k + 1]):
                if grad is not None and other is not None:
                    row[k, j] = (grad.to(like.dtype) * other.to(like.dtype)).sum(dtype=torch.float64)
                    row[j, k] = row[k, j]
    return gram


def combined_adam(
    param: Tensor,
    grads: Sequence[Tensor | None],
    weights: Sequence[Tensor] | Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    decoupled_weight_decay: bool,
) -> Tensor:
    """Adam's step, for one parameter, on the weighted sum of the terms' gradients.

    Changes ``param``, ``exp_avg``, ``exp_avg_sq`` and ``max_exp_avg_sq`` in place.

    Args:
        param: any shape.
        grads: ``[K]``, of the shape of ``param``; None where a term is absent.
        weights: ``[K]`` scalars.
        exp_avg, exp_avg_sq: the moments, in the arithmetic type.
        max_exp_avg_sq: the largest second moment so far where AMSGrad is on, else None.
        step, lr, weight_decay: as of :func:`mtadam_update`.

    Returns:
        The weighted sum of the gradients, in the arithmetic type; without weight decay.
    """
    p = param.to(exp_avg.dtype)
    combined = torch.zeros_like(p)
    for grad, weight in zip(grads, weights, strict=True):
        if grad is not None:
            combined += weight * grad.to(p.dtype)
    decay, l2_decay = (weight_decay, 0.0) if decoupled_weight_decay else (0.0, weight_decay)
    gradient = (-combined if maximize else combined) + l2_decay * p
    exp_avg_sq.copy_(beta2 * exp_avg_sq + (1 - beta2) * gradient * gradient)
    largest = exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq.copy_(torch.maximum(max_exp_avg_sq, exp_avg_sq))
    advance(param, gradient, exp_avg, largest, step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, decoupled_decay=decay)
    return combined


def advance(
    param: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    largest: Tensor,
    step: Tensor,
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    decoupled_decay: float,
) -> None:
    """The end of a step: advances ``exp_avg`` by ``gradient``, and ``param`` by it over the root of ``largest``."""
    p = param.to(exp_avg.dtype)
    exp_avg.copy_(beta1 * exp_avg + (1 - beta1) * gradient)
    denominator = largest.sqrt() / bias_correction(beta2, step, p.dtype).sqrt() + eps
    change = lr / bias_correction(beta1, step, p.dtype) * exp_avg / denominator
    if decoupled_decay:
        change += lr * decoupled_decay * p
    param.copy_(p - change)


def bias_correction(beta: float, step: Tensor, dtype: torch.dtype) -> Tensor:
    """``1 - beta**step``, without the digits that the subtraction loses in float32."""
    return -torch.expm1(step.to(dtype) * (math.log(beta) if beta > 0 else -math.inf))
