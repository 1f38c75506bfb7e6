"""Gradient normalization."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hyperparameters import TermWeights, check_not_negative, is_number
from .progress import Progress, pad_to
from .rule import Rule, check_gram, copy_or_replace_

MEAN = "mean"  # as an anchor: the mean of the norms


class GradientNormalization(Rule):
    """Bring every term's gradient to the same norm: the weight of term k is ``r_k**alpha * n / ||g_k||``.

    The norm n is 1, or that of the ``anchor``. r_k is GradNorm's relative inverse training rate, above 1 for terms that
    train slowly. From the survey "Strategies for Balancing Multiple Loss Functions in Deep Learning". A term whose
    gradient is zero has weight 1, or keeps the one it had where there is an ``ema`` or ``every``; so have all terms
    where the anchor's gradient is zero. Losses below 1e-12 count as 1e-12.

    With an anchor this is, on L2 norms: ::

        # VQGAN's adaptive weight of the discriminator (Esser et al., arXiv 2012.09841)
        GradientNormalization(anchor="nll", clamp=(0, 1e4), eps=1e-4, parameters=last_layer.weight,
                              preference={"nll": 1, "discriminator": 0.8})
        # learning-rate annealing of PINNs (Wang et al., arXiv 2001.04536)
        GradientNormalization(anchor="residual", ema=0.9, every=10)
        # jaxpi's grad_norm (Wang et al., arXiv 2308.08468)
        GradientNormalization(anchor="mean", ema=0.9, every=1000)

    Args:
        alpha: how much to favor slow terms; at 0 the losses are not looked at.
        anchor: the name of the term that keeps weight 1, and whose norm the others get; "mean" for the mean of the
            norms, without a term of that name; None for norm 1.
        ema: decay of a running average of ``n / ||g_k||``, in [0, 1); it starts at 1. 0 for none.
        every: at how many steps the weights are found anew; between them they stay.
        clamp: bounds of ``n / ||g_k||``, such as ``(0, 1e4)``; None for none.
        eps: added to ``||g_k||``.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.
        preference: what each weight is multiplied by.

    Raises:
        ValueError: an argument out of its range; at a step, no term of the name ``anchor``.
    """

    shown: ClassVar[tuple[str, ...]] = ("alpha",)
    shown_if_changed: ClassVar[Mapping[str, Any]] = {
        **Rule.shown_if_changed,
        **{"anchor": None, "ema": 0.0, "every": 1, "clamp": None, "eps": 0.0},
    }

    def __init__(
        self,
        alpha: float = 0.0,
        *,
        anchor: Hashable = None,
        ema: float = 0.0,
        every: int = 1,
        clamp: tuple[float, float] | None = None,
        eps: float = 0.0,
        parameters: Tensor | Iterable[Tensor] | None = None,
        preference: TermWeights = None,
    ) -> None:
        super().__init__(preference=preference, parameters=parameters)
        check_not_negative("alpha", alpha)
        check_not_negative("eps", eps)
        if not is_number(ema) or not 0.0 <= ema < 1.0:
            raise ValueError(f"ema is {ema!r}; it must be a number in [0, 1), 0 for no average")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every is {every!r}; it must be a whole number of at least 1")
        if clamp is not None and not is_range(clamp):
            raise ValueError(f"clamp is {clamp!r}; it must be two numbers, 0 <= low <= high, or None")
        self.alpha = alpha
        self.anchor = anchor
        self.ema = ema
        self.every = every
        self.clamp = clamp
        self.eps = eps
        self.needs_losses = alpha > 0
        self._progress = Progress()
        self._anchor: int | None = None  # position of the term that is the anchor
        self._ratios = torch.empty(0, dtype=torch.float64, device="cpu")  # [K], averaged; stays empty if not kept
        self._step = torch.zeros((), dtype=torch.int64, device="cpu")

    def check_terms(self, terms: Sequence[Hashable], *, allow_more: bool) -> None:
        super().check_terms(terms, allow_more=allow_more)
        names = list(terms)
        if self.anchor in names:
            self._anchor = names.index(self.anchor)
        elif self.anchor in (None, MEAN) or allow_more:
            self._anchor = None
        else:
            raise ValueError(
                f"anchor is {self.anchor!r}, and the terms are {names}; name one of them, use {MEAN!r} or None, or "
                "give the optimizer all names as terms="
            )

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        check_gram(gram)
        norms = gram.diagonal().sqrt()
        ratios = self._averaged_ratios(norms)
        if self.alpha:
            rates = self._progress.inverse_rates(losses)
            ratios = torch.where(norms > 0, ratios * rates**self.alpha, ratios)
        return ratios * self.preference_like(norms)

    def _averaged_ratios(self, norms: Tensor) -> Tensor:
        """Return ``[K]``, what brings each gradient to its norm, averaged; keep it for the next step."""
        before = pad_to(self._ratios, norms, 1.0)
        is_known = (norms > 0) & norms.isfinite()
        if self._anchor is not None:
            wanted = norms[self._anchor]
        elif self.anchor == MEAN:
            wanted = torch.where(is_known, norms, 0.0).sum() / is_known.sum().clamp(min=1)
        else:
            wanted = torch.ones_like(norms[0])
        ratios = wanted / (norms + self.eps)
        if self.clamp is not None:
            ratios = ratios.clamp(float(self.clamp[0]), float(self.clamp[1]))
        if self._anchor is not None:
            ratios = torch.where(torch.arange(len(norms), device=norms.device) == self._anchor, 1.0, ratios)
        ratios = torch.where(is_known & (wanted > 0) & wanted.isfinite(), ratios, before)
        if self.ema == 0 and self.every == 1:
            return ratios
        if self._step.device != norms.device:
            self._step = self._step.to(norms.device)
        ratios = torch.where(self._step % self.every == 0, self.ema * before + (1 - self.ema) * ratios, before)
        self._step += 1
        self._ratios = copy_or_replace_(self._ratios, ratios)
        return ratios

    def state_dict(self) -> dict[str, Any]:
        return {"initial_losses": self._progress.initial, "ratios": self._ratios, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._progress.initial = state["initial_losses"].clone()
        self._ratios, self._step = state["ratios"].clone(), state["step"].clone()


def is_range(clamp: Any) -> bool:
    """Return whether these are two numbers of at least 0, in order."""
    is_pair = isinstance(clamp, Sequence) and len(clamp) == 2 and all(map(is_number, clamp))
    return is_pair and 0 <= clamp[0] <= clamp[1]
