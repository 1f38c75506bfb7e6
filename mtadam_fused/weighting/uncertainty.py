"""Strategies that learn a weight for each term, as the uncertainty of its task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..hyperparameters import Term, TermWeights
from .base import Weighting, check_values, pick, positions_of, vector_like

SMALLEST_P = 1e-4  # it bounds a loss's weight to 5e7; reached at losses of 2e-16 only
SMALLEST_LOG_VARIANCE = -30.0  # it bounds a loss's weight to 1e13; reached at losses of 1e-13 only
KINDS = {"regression": 0.5, "classification": 1.0}  # the factor of exp(-s) * L


class LearnedWeighting(Weighting):
    """Base class of weightings that learn one number per term, in a parameter of shape [K] that subclasses make."""

    def __init__(self, terms: Iterable[Term], priorities: TermWeights) -> None:
        super().__init__(terms, priorities)
        if not self.terms:
            raise ValueError("terms is empty; name at least one term")

    def contributions(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return each term's contribution, from losses of at least 0."""
        check_values(values, terms, 0.0, "it must not be negative, or the learned total has no minimum")
        return self.objective(values, positions_of(terms, self.terms))

    def objective(self, values: Tensor, positions: list[int]) -> Tensor:
        """Return the strategy's formula, for the terms at ``positions``."""
        raise NotImplementedError

    def get_extra_state(self) -> dict[str, Any]:
        """Return the terms that the parameter's elements belong to."""
        return {"terms": list(self.terms)}

    def set_extra_state(self, state: Any) -> None:
        """Raise ValueError unless the saved terms are those of the module, in their order."""
        if tuple(state["terms"]) != self.terms:
            saved = state["terms"]
            raise ValueError(f"the saved terms are {saved}, the weighting's {list(self.terms)}; make it with those")


class Uncertainty(LearnedWeighting):
    """sum_k 0.5 / p_k^2 * L_k + log(1 + p_k^2), p_k learned (Liebel and Körner, arXiv 1805.06334).

    A constant loss L has its minimum at p^4 = (L / 2) * (1 + p^2). A priority multiplies the whole contribution: one of
    the loss alone would be learned away. Weight decay would pull p to 0 and so the weights up; leave it out::

        weighting = Uncertainty(["fit", "size"])
        optimizer = torch.optim.AdamW(
            [{"params": model.parameters()}, {"params": weighting.parameters(), "weight_decay": 0.0}], lr=1e-3
        )
        weighting({"fit": fit, "size": size}).backward()
        optimizer.step()

    The formula is singular at p = 0. Where |p| is below ``SMALLEST_P`` it is taken there, with the gradient that the
    loss has there, so that p finds its way back; only a loss that is zero to rounding comes so far. Losses must not be
    negative: the total would have no minimum. On a GPU or in torch.compile, where losses are not checked, a negative
    one takes p there.

    State: the parameter ``p`` [K]. Under DistributedDataParallel make the module part of what is wrapped, so that the
    gradients of p are averaged too. A term that is left out of a call has a zero gradient in its p.

    Args:
        terms: names of the terms; ``range(K)`` for losses in a list.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: no terms, a name twice, or bad priorities; from ``load_state_dict``, other terms than saved.
        TypeError: terms that are not names.
    """

    def __init__(self, terms: Iterable[Term], *, priorities: TermWeights = None) -> None:
        super().__init__(terms, priorities)
        self.p = nn.Parameter(torch.ones(len(self.terms)))

    def objective(self, values: Tensor, positions: list[int]) -> Tensor:
        """Return 0.5 / p^2 * L + log(1 + p^2)."""
        p = pick(self.p, positions).to(values)
        bounded = torch.copysign(p.abs().clamp(min=SMALLEST_P), p)
        return 0.5 / with_gradient_of(p, bounded).square() * values + torch.log1p(bounded.square())


class KendallUncertainty(LearnedWeighting):
    """Learned log variances s_k of Gaussian and softmax likelihoods (Kendall, Gal and Cipolla, arXiv 1705.07115).

    sum_k 0.5 * exp(-s_k) * L_k + 0.5 * s_k for terms of kind "regression", whose minimum for a constant loss L is at
    exp(s) = L, and exp(-s_k) * L_k + 0.5 * s_k for "classification", with its minimum at exp(s) = 2 * L. A priority
    multiplies the whole contribution: one of the loss alone would be learned away. Weight decay would pull s to 0, so
    leave it out::

        weighting = KendallUncertainty(["depth", "digit"], kinds=["regression", "classification"])
        optimizer = torch.optim.AdamW(
            [{"params": model.parameters()}, {"params": weighting.parameters(), "weight_decay": 0.0}], lr=1e-3
        )
        weighting({"depth": depth, "digit": digit}).backward()
        optimizer.step()

    A loss of zero would take s to minus infinity. Where s is below ``SMALLEST_LOG_VARIANCE`` the formula is taken
    there, with the gradient that the loss has there, so that s stays, and comes back with the loss. Losses must not be
    negative: the total would have no minimum. On a GPU or in torch.compile, where losses are not checked, a negative
    one takes s there.

    State: the parameter ``log_variance`` [K], starting at 0. Under DistributedDataParallel make the module part of what
    is wrapped, so that its gradients are averaged too. A term that is left out of a call has a zero gradient in its s.

    Args:
        terms: names of the terms; ``range(K)`` for losses in a list.
        kinds: "regression" or "classification" for each term, as a mapping from names or as a sequence.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: no terms, a name twice, kinds that do not fit the terms, or bad priorities; from
            ``load_state_dict``, other terms than saved.
        TypeError: terms that are not names.
    """

    def __init__(
        self, terms: Iterable[Term], kinds: Mapping[Any, str] | Sequence[str], *, priorities: TermWeights = None
    ) -> None:
        super().__init__(terms, priorities)
        self.factors = [KINDS[kind] for kind in checked_kinds(kinds, self.terms)]
        self.log_variance = nn.Parameter(torch.zeros(len(self.terms)))

    def objective(self, values: Tensor, positions: list[int]) -> Tensor:
        """Return exp(-s) * L + 0.5 * s, with 0.5 * L for regression."""
        s = pick(self.log_variance, positions).to(values)
        factors = vector_like(values, [self.factors[i] for i in positions])
        bounded = s.clamp(min=SMALLEST_LOG_VARIANCE)
        return factors * torch.exp(-with_gradient_of(s, bounded)) * values + 0.5 * bounded


def with_gradient_of(free: Tensor, bounded: Tensor) -> Tensor:
    """Return the value of ``bounded`` with the derivative of ``free``: its bound does not stop the gradient."""
    return free + (bounded - free).detach()


def checked_kinds(kinds: Any, terms: Sequence[Term]) -> list[str]:
    """Return the kind of each term. Raise ValueError for kinds that do not fit."""
    if isinstance(kinds, Mapping):
        kinds = [kinds.get(term) for term in terms]
    if isinstance(kinds, str) or not isinstance(kinds, Sequence) or len(kinds) != len(terms):
        raise ValueError(f"kinds is {kinds!r}; give each of the terms {list(terms)} one of {list(KINDS)}")
    for term, kind in zip(terms, kinds, strict=True):
        if kind not in KINDS:
            raise ValueError(f"the kind of term {term!r} is {kind!r}; it must be one of {list(KINDS)}")
    return list(kinds)
