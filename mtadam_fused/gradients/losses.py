"""The losses that a user passes, one scalar per term: their names, and errors for bad ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed.dtensor import full_tensor
from ..hyperparameters import Term, plain_name
from ..reference import arithmetic_type

Losses = Mapping[Any, Tensor] | Sequence[Tensor]


def named_losses(
    losses: Losses, terms: Sequence[Term], *, need_graph: bool = True, need_finite: bool = True
) -> dict[Term, Tensor]:
    """Check ``losses``, and return them by term. A sequence goes by position, in the order of ``terms`` if any.

    Args:
        losses: scalar losses.
        terms: names of the terms known so far.
        need_graph: refuse losses that cannot be differentiated.
        need_finite: refuse losses that are visibly not finite; not where other processes would wait for this one.

    Raises:
        TypeError: not a mapping or sequence of tensors.
        ValueError: no losses, a loss without a graph, not real, not scalar or (where looking costs no synchronization)
            not finite, or a sequence of another length than ``terms``.
    """
    if isinstance(losses, Mapping):
        named = {plain_name(term): loss for term, loss in losses.items()}
    elif isinstance(losses, Sequence) and not isinstance(losses, (str, bytes)):
        if terms and len(losses) != len(terms):
            raise ValueError(
                f"losses has {len(losses)} losses, but there are {len(terms)} terms {list(terms)}; "
                "pass a mapping from names to losses if terms come and go"
            )
        named = dict(zip(terms or range(len(losses)), losses, strict=True))
    else:
        raise TypeError(
            f"losses is a {type(losses).__name__}; pass a mapping from names to losses, or a list ([loss] for one term)"
        )
    if not named:
        raise ValueError("losses is empty; pass at least one loss")
    for term, loss in named.items():
        check_loss(term, loss, need_graph=need_graph, need_finite=need_finite)
    return named


def divide_losses(losses: Losses, by: float) -> Losses:
    """Return the losses divided by a number, as a mapping or a sequence as they came."""
    if isinstance(losses, Mapping):
        return {term: loss / by for term, loss in losses.items()}
    return [loss / by for loss in losses]


def sum_losses(losses: Losses) -> Tensor:
    """Return the sum of ``losses``, a scalar without a graph, in float32 at least."""
    values = losses.values() if isinstance(losses, Mapping) else losses
    first, *others = (full_tensor(loss.detach()).reshape(()) for loss in values)
    total = first.to(arithmetic_type(first.dtype), copy=True)
    for loss in others:
        total += loss.to(total.device)
    return total


def check_loss(term: Term, loss: Any, *, need_graph: bool, need_finite: bool) -> None:
    """Raise TypeError or ValueError for a loss that cannot be used; arguments as in :func:`named_losses`."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss {term!r} is a {type(loss).__name__}; it must be a Tensor with a graph (no .item())")
    if loss.numel() != 1:
        raise ValueError(f"loss {term!r} has shape {tuple(loss.shape)}; it must be a scalar: take its mean or its sum")
    if not loss.is_floating_point():
        raise ValueError(f"loss {term!r} is {loss.dtype}; it must be real and of a floating-point type")
    if need_graph and not loss.requires_grad:
        raise ValueError(
            f"loss {term!r} has no graph (requires_grad is False); leave it out, or compute it with gradients on"
        )
    if need_finite and is_free_to_read(loss) and not math.isfinite(loss.item()):
        raise ValueError(f"loss {term!r} is {loss.item()}; it must be finite: leave it out of this step, or lower lr")


def is_free_to_read(value: Tensor) -> bool:
    """Return whether reading ``value`` neither waits for a device nor breaks a graph that is being compiled."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling()
