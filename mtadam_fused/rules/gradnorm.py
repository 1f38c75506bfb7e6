"""GradNorm."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hyperparameters import TermWeights, check_not_negative
from .progress import Progress, pad_to
from .rule import Rule, check_gram, copy_or_replace_

MIN_WEIGHT = 1e-3  # where the published rule would let a weight become zero or negative


class GradNorm(Rule):
    """Learn weights that make all terms train at similar rates: GradNorm (Chen et al., arXiv 1711.02257).

    With G_k = w_k ||g_k|| over ``parameters`` and r_k the relative inverse training rate (each loss over its first
    value, over the mean of these ratios), the weights w_k descend the sum of ``|G_k - mean(G) r_k**alpha|``, the
    targets held fixed, and are scaled so that their sum stays the number of terms. The network's step uses the weights
    of before this descent. Slow terms gain weight. Losses below 1e-12 count as 1e-12; weights are at least 1e-3 before
    they are scaled. A term that is absent, or whose gradient is zero or not finite, takes no part in the step's
    balance.

    Args:
        alpha: how strongly to pull the rates together.
        lr: learning rate of the weights.
        parameters: where the gradients' norms are taken, usually the last shared layer's; default all shared ones.
        preference: what each term's target is multiplied by, over its mean.

    Raises:
        ValueError: an ``alpha`` or ``lr`` that is no finite number of at least 0, or as in :class:`Rule`.
    """

    needs_losses = True
    shown: ClassVar[tuple[str, ...]] = ("alpha", "lr")

    def __init__(
        self,
        alpha: float = 1.5,
        lr: float = 0.025,
        parameters: Tensor | Iterable[Tensor] | None = None,
        *,
        preference: TermWeights = None,
    ) -> None:
        super().__init__(preference=preference, parameters=parameters)
        check_not_negative("alpha", alpha)
        check_not_negative("lr", lr)
        self.alpha = alpha
        self.lr = lr
        self._progress = Progress()
        self._weights = torch.empty(0, dtype=torch.float64, device="cpu")

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        check_gram(gram)
        norms = gram.diagonal().sqrt()
        rates = self._progress.inverse_rates(losses)
        weights = pad_to(self._weights, norms, 1.0).clone()
        is_active = (norms > 0) & norms.isfinite() & losses.isfinite()
        sizes = weights * norms
        wanted = torch.where(is_active, self.preference_like(norms), 0.0)
        wanted = wanted / torch.where(wanted.sum() > 0, wanted.sum(), 1.0)  # 1 / count without a preference
        targets = torch.where(is_active, sizes, 0.0).sum() * wanted * rates**self.alpha
        moved = (weights - self.lr * torch.sign(sizes - targets) * norms).clamp(min=MIN_WEIGHT)
        scale = torch.where(is_active, weights, 0.0).sum() / torch.where(is_active, moved, 0.0).sum()
        self._weights = copy_or_replace_(self._weights, torch.where(is_active, moved * scale, weights))
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._weights, "initial_losses": self._progress.initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weights, self._progress.initial = state["weights"].clone(), state["initial_losses"].clone()
