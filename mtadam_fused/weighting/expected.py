"""Losses that are known without training: of a model that starts at zero, and of one that knows only the targets."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def initial_class_loss(num_classes: int) -> float:
    """Return log(C): the cross entropy of C classes, in nats, where all logits are zero.

    Raises:
        ValueError: not a whole number of at least 2 classes.
    """
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 2:
        raise ValueError(f"num_classes is {num_classes!r}; it must be a whole number of at least 2")
    return math.log(num_classes)


def initial_regression_loss(targets: Tensor) -> float:
    """Return E ||y||^2: the squared error of an output of zero, in float64.

    It is summed over the components of a target; torch's ``mse_loss`` is the mean over them, so divide by their number.

    Args:
        targets: ``[N, ...]``, one target a row.

    Raises:
        TypeError, ValueError: targets that are not real numbers, finite, at least one.
    """
    return mean_square(checked_targets(targets))


def regression_prior_loss(targets: Tensor) -> float:
    """Return E ||y - E y||^2: the squared error of an output that is always the mean target, in float64.

    It is summed over the components of a target; torch's ``mse_loss`` is the mean over them, so divide by their number.

    Args:
        targets: ``[N, ...]``, one target a row.

    Raises:
        TypeError, ValueError: targets that are not real numbers, finite, at least one.
    """
    rows = checked_targets(targets)
    return mean_square(rows - rows.mean(dim=0))


def class_prior_loss(labels: Tensor | None = None, *, frequencies: Tensor | Sequence[float] | None = None) -> float:
    """Return H(p) = -sum_c p_c log p_c: the cross entropy, in nats, of an output that is always the frequencies p.

    Args:
        labels: class numbers, of any shape, of a whole-number type.
        frequencies: instead of labels, ``[C]`` numbers of at least 0: shares, counts, or anything in proportion.

    Raises:
        TypeError: labels that are not a Tensor of whole numbers, or not one of the arguments.
        ValueError: no labels, negative labels, or frequencies that are negative, not finite, or all zero.
    """
    if (labels is None) == (frequencies is None):
        raise TypeError("give either labels or frequencies")
    counts = count(labels) if labels is not None else checked_frequencies(frequencies)
    return torch.special.entr(counts / counts.sum()).sum().item()


def count(labels: Any) -> Tensor:
    """Return the frequency of each class, ``[C]``, float64."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        what = labels.dtype if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise TypeError(f"labels is {what}; it must be a Tensor of class numbers (pass shares as frequencies=)")
    if labels.numel() == 0 or bool((labels < 0).any()):
        raise ValueError(f"labels has {labels.numel()} labels, or negative ones; leave out those to be ignored")
    return torch.bincount(labels.flatten().long()).double()


def checked_frequencies(frequencies: Any) -> Tensor:
    """Return ``frequencies`` in float64."""
    if isinstance(frequencies, Tensor):
        values = frequencies.double()
    else:
        values = torch.tensor(frequencies, dtype=torch.float64, device="cpu")
    if values.dim() != 1 or not bool(values.isfinite().all() & (values >= 0).all() & (values.sum() > 0)):
        raise ValueError(f"frequencies is {frequencies!r}; it must be finite numbers of at least 0, not all zero")
    return values


def checked_targets(targets: Any) -> Tensor:
    """Return ``targets`` as ``[N, D]`` float64."""
    if not isinstance(targets, Tensor) or targets.is_complex():
        what = targets.dtype if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
        raise TypeError(f"targets is {what}; it must be a Tensor of real numbers")
    if targets.dim() == 0 or targets.numel() == 0:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; it must be [N, ...] with at least one target")
    rows = targets.detach().double().flatten(1) if targets.dim() > 1 else targets.detach().double()[:, None]
    if not bool(rows.isfinite().all()):
        raise ValueError("targets has values that are not finite; leave them out")
    return rows


def mean_square(rows: Tensor) -> float:
    """Return the mean of the rows' squared Euclidean norms."""
    return rows.square().sum(dim=1).mean().item()
