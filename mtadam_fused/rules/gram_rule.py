"""The base class of the rules that solve a problem in the gradients' dot products."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hyperparameters import TermWeights
from .rule import Rule, check_gram
from .supports import EXHAUSTIVE
from .unit_gram import UnitGram


class GramRule(Rule):
    """Base class of rules that find weights from the dot products alone, in float64.

    Up to eight terms nothing waits for the device. Of more, the problem is solved on the host, in a bounded number of
    steps: one wait for the device. Gradients that are zero, of absent terms too, have weight 0 and do not change the
    weights of the others. The gradients' scales may differ by 16 orders of magnitude.

    Args:
        preference: how much each term counts, by name or in the terms' order; default 1 for each.
        normalized: whether to weight the gradients divided by their norms, in place of the gradients as they came.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: as in :class:`Rule`.
    """

    shown_if_changed: ClassVar[Mapping[str, Any]] = {**Rule.shown_if_changed, "normalized": False}

    def __init__(
        self,
        *,
        preference: TermWeights = None,
        normalized: bool = False,
        parameters: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(preference=preference, parameters=parameters)
        self.normalized = normalized

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        check_gram(gram)
        device = gram.device
        unit = UnitGram.of(gram.cpu() if len(gram) > EXHAUSTIVE else gram)
        is_present = unit.norms > 0
        preference = torch.where(is_present, self.preference_like(unit.norms), 0.0)
        norms = is_present.to(gram.dtype) if self.normalized else unit.norms
        return (self.coefficients(unit.cosines, norms, preference) * unit.inverse).to(device)

    def coefficients(self, cosines: Tensor, norms: Tensor, preference: Tensor) -> Tensor:
        """Return what multiplies each unit vector: the weights times the norms.

        Args:
            cosines: ``[K, K]``; a gradient that is zero counts as at a right angle to all others.
            norms: ``[K]``, of the gradients.
            preference: ``[K]``, at least 0, and 0 where the gradient is.

        Returns:
            ``[K]``.
        """
        raise NotImplementedError


def shares(preference: Tensor) -> Tensor:
    """Return ``preference`` over its sum, or zeros where that is zero."""
    total = preference.sum()
    return preference / torch.where(total > 0, total, 1.0)
