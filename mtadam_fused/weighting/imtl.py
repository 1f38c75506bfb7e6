"""IMTL-L."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..hyperparameters import Term, TermWeights
from .base import pick
from .uncertainty import LearnedWeighting, with_gradient_of

LARGEST_LOG_SCALE = 30.0  # it bounds a loss's weight to 1e13; reached at losses of 1e-13 only


class IMTLL(LearnedWeighting):
    """sum_k exp(s_k) L_k - s_k, s_k learned: IMTL-L of "Towards Impartial Multi-task Learning" (Liu et al., ICLR 2021).

    For a constant loss L the minimum is at exp(s) = 1 / L: all scaled losses come to 1. A priority multiplies the whole
    contribution: one of the loss alone would be learned away. Weight decay would pull s to 0, so leave it out::

        weighting = IMTLL(["fit", "size"])
        optimizer = torch.optim.AdamW(
            [{"params": model.parameters()}, {"params": weighting.parameters(), "weight_decay": 0.0}], lr=1e-3
        )
        weighting({"fit": fit, "size": size}).backward()
        optimizer.step()

    A loss of zero would take s to infinity. Where s is above ``LARGEST_LOG_SCALE`` the formula is taken there, with the
    gradient that the loss has there, so that s stays, and comes back with the loss. Losses must not be negative: the
    total would have no minimum. On a GPU or in torch.compile, where losses are not checked, a negative one takes s
    there.

    State: the parameter ``log_scale`` [K], starting at 0. Under DistributedDataParallel make the module part of what is
    wrapped, so that its gradients are averaged too. A term that is left out of a call has a zero gradient in its s.

    Args:
        terms: names of the terms; ``range(K)`` for losses in a list.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: no terms, a name twice, or bad priorities; from ``load_state_dict``, other terms than saved.
        TypeError: terms that are not names.
    """

    def __init__(self, terms: Iterable[Term], *, priorities: TermWeights = None) -> None:
        super().__init__(terms, priorities)
        self.log_scale = nn.Parameter(torch.zeros(len(self.terms)))

    def objective(self, values: Tensor, positions: list[int]) -> Tensor:
        """Return exp(s) * L - s."""
        s = pick(self.log_scale, positions).to(values)
        bounded = s.clamp(max=LARGEST_LOG_SCALE)
        return torch.exp(with_gradient_of(s, bounded)) * values - bounded
