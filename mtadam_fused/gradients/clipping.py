"""Clipping gradients by their norm, as torch.nn.utils.clip_grad_norm_ does."""

from typing import Any

import torch
from torch import Tensor

from ..hyperparameters import is_number

EPS = 1e-6  # added to the norm, as torch does


def clip_factors(norms: Tensor, max_norm: float) -> Tensor:
    """Return what gradients with these ``norms`` are to be multiplied by, to have norms of at most ``max_norm``."""
    return (max_norm / (norms + EPS)).clamp(max=1.0)


def check_max_norm(max_norm: Any) -> None:
    """Raise ValueError unless ``max_norm`` is a number of at least 0. Infinity clips nothing."""
    if not is_number(max_norm) or not max_norm >= 0.0:
        raise ValueError(f"max_norm is {max_norm!r}; it must be a number of at least 0")


def check_norms(norms: Tensor, gradients: Any) -> None:
    """Raise RuntimeError for a norm that is not finite. Waits for the device; ``gradients`` says whose norms it is."""
    if not torch.isfinite(norms).all():
        raise RuntimeError(
            f"the norm of {gradients} is {norms.tolist()}, so it cannot be clipped; call zero_grad() to drop the "
            "gradients, or leave error_if_nonfinite at False"
        )
