"""Strategies whose total is not a sum over the terms: the geometric mean, and a smooth maximum."""

import torch
from torch import Tensor

from ..hyperparameters import Term, TermWeights, weights_of
from .base import Weighting, check_positive, check_values, numbers_by_term, pick, smallest, vector_like


class JointWeighting(Weighting):
    """Base class of weightings that join the losses with positive priorities; a priority of 0 leaves a loss out."""

    def total(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the total of the losses whose priority is positive. Raise ValueError if there is none."""
        priorities = self.coefficients(terms)
        kept = [i for i, priority in enumerate(priorities) if priority > 0]
        if not kept:
            raise ValueError(f"priorities is 0 for all losses of the call, {list(terms)}; make one of them positive")
        factors = vector_like(values, [priorities[i] for i in kept])
        return self.join(pick(values, kept), factors, tuple(terms[i] for i in kept))

    def join(self, values: Tensor, priorities: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the total, a scalar; ``values`` and positive ``priorities`` are ``[len(terms)]``."""
        raise NotImplementedError


class GeometricMean(JointWeighting):
    """(prod_k L_k)^(1/K) for K losses in the call: the geometric loss strategy (Chennupati et al., arXiv 1904.08492).

    Its gradient is the total times the mean of grad L_k / L_k: a constant factor on a loss does not change the balance.
    Priorities are exponents, (prod_k L_k^priority_k)^(1 / sum_k priority_k), where the paper favors some losses by
    taking them again.

    Losses must be positive. On a GPU or in torch.compile, where losses are not checked, one that is not positive is
    left out of that call; the total is 0 if all are.

    Args:
        priorities: as in :class:`Weighting`, but as exponents.

    Raises:
        ValueError: bad priorities.
    """

    def __init__(self, *, priorities: TermWeights = None) -> None:
        super().__init__(priorities=priorities)

    def join(self, values: Tensor, priorities: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the exponential of the logarithms' mean."""
        check_values(values, terms, smallest(values), "it must be positive to have a logarithm")
        usable = (values >= smallest(values)) | ~values.isfinite()  # what is not finite is not to be hidden
        exponents = torch.where(usable, priorities, 0.0)
        exponents = exponents / exponents.sum().clamp(min=smallest(values))
        mean = (exponents * torch.where(usable, values, 1.0).log()).sum().exp()
        return torch.where(usable.any(), mean, 0.0)


class STCH(JointWeighting):
    """mu log sum_k exp(priority_k (L_k - z_k) / mu): smooth Tchebycheff scalarization (Lin et al., arXiv 2402.19078).

    A smooth max_k priority_k (L_k - z_k), above it by at most mu log K. With a small ``mu`` and the right priorities it
    can reach Pareto optimal solutions that no weighted sum reaches. The gradient's weights, priority_k times a softmax,
    favor the loss that is worst; as ``mu`` goes to 0, they are that one's alone. Bring the losses to one scale first,
    such as with priorities of 1 / L_k(0). The paper's priorities add up to 1; these are 1 each by default.

    Any finite losses will do.

    Args:
        mu: the smoothing, above 0, in the unit of the weighted losses.
        ideal: z_k for each term, finite numbers below what its loss can reach, as a mapping from names or as a
            sequence; default 0.
        priorities: as in :class:`Weighting`, but inside of the exponential.

    Raises:
        ValueError: ``mu`` is not positive, ``ideal`` is not finite numbers, or bad priorities.
    """

    def __init__(self, mu: float, *, ideal: TermWeights = None, priorities: TermWeights = None) -> None:
        check_positive("mu", mu)
        numbers = numbers_by_term("ideal", ideal, signed=True)
        super().__init__(numbers or (), priorities)
        self.mu = mu
        self.ideal = numbers

    def join(self, values: Tensor, priorities: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the smooth maximum."""
        excess = values
        if self.ideal is not None:
            excess = values - vector_like(values, weights_of(self.ideal, terms, name="ideal"))
        excess = torch.where(values.isfinite(), excess, torch.nan)  # or an exponential would hide minus infinity
        return self.mu * torch.logsumexp(priorities * excess / self.mu, dim=0)
