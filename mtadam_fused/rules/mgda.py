"""MGDA."""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from ..hyperparameters import TermWeights
from .min_norm import min_norm_weights
from .progress import TINY_LOSS
from .rule import Rule, check_gram

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


class MGDA(Rule):
    """Weight by the point of least norm in the gradients' convex hull: MGDA (Désidéri 2012; Sener and Koltun, 2018).

    A step along it lowers every loss, or where it is zero no direction does. Solved exactly. Gradients that are zero
    are left out, with weight 0, for with them every step would be zero. Up to eight terms nothing waits for the device.

    Args:
        normalization: what each gradient is divided by first: "none"; "l2", its norm; "loss", its loss; or "loss+", the
            product of both. The weights are those of the gradients as they came. Losses below 1e-12 count as 1e-12.
        preference: what each gradient, normalized or not, is multiplied by first; 0 leaves a term out.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: no such ``normalization``, or as in :class:`Rule`.
    """

    shown: ClassVar[tuple[str, ...]] = ("normalization",)

    def __init__(
        self,
        normalization: str = "none",
        *,
        preference: TermWeights = None,
        parameters: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(preference=preference, parameters=parameters)
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization is {normalization!r}; it must be one of {', '.join(NORMALIZATIONS)}")
        self.normalization = normalization
        self.needs_losses = normalization.startswith("loss")

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        check_gram(gram)
        factors = self.preference_like(gram[0])
        if self.needs_losses:
            factors = factors / losses.clamp(min=TINY_LOSS).nan_to_num(1.0)
        if self.normalization in ("l2", "loss+"):
            norms = gram.diagonal().sqrt()
            factors = torch.where(norms > 0, factors / norms, 0.0)
        return min_norm_weights(gram * factors * factors[:, None]) * factors
