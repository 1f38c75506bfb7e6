"""The progress of each loss, as GradNorm measures it."""

import torch
from torch import Tensor

from .rule import copy_or_replace_

TINY_LOSS = 1e-12  # losses below it (negative ones too) count as this: a ratio of losses needs them positive


class Progress:
    """Keep the terms' first losses. ``initial`` is ``[K]`` float64, NaN for a term that has not been seen."""

    def __init__(self) -> None:
        self.initial = torch.empty(0, dtype=torch.float64, device="cpu")

    def inverse_rates(self, losses: Tensor) -> Tensor:
        """Return ``[K]`` relative inverse training rates: each loss over its first value, over the mean of these.

        Above 1 for a term that trains more slowly than the others. NaN where ``losses`` is.
        """
        losses = losses.clamp(min=TINY_LOSS)
        initial = pad_to(self.initial, losses, torch.nan)
        self.initial = copy_or_replace_(self.initial, torch.where(initial.isnan(), losses, initial))
        ratios = losses / self.initial
        return ratios / ratios.nanmean()


def pad_to(values: Tensor, like: Tensor, fill: float) -> Tensor:
    """Return ``values`` on the device of ``like``, padded to its length with ``fill`` for terms that are new.

    Raises:
        ValueError: ``values`` are of more terms.
    """
    if len(values) > len(like):
        raise ValueError(
            f"the rule has the state of {len(values)} terms, and there are {len(like)}; give each optimizer a rule of "
            "its own"
        )
    values = values.to(like.device)
    return torch.cat([values, values.new_full((len(like) - len(values),), fill)]) if len(values) < len(like) else values
