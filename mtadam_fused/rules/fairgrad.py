"""FairGrad and Nash-MTL."""

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from ..hyperparameters import TermWeights, check_not_negative
from .gram_rule import GramRule
from .supports import solve

STEPS = 25  # of Newton's method, of which 5 to 15 are needed but where gradients all but cancel
STEPS_AT_MOST = 100  # where the end can be looked at
LARGEST = 1e4  # how many times what the largest of them would be alone the coefficients may become
STEEPNESS = 8  # power of the wall there: at a hundredth of it, it is as good as absent
HALVINGS = 12  # lengths of a step that are tried at once


class FairGrad(GramRule):
    """Share the progress among the terms alpha-fairly: FairGrad (Ban and Ji, arXiv 2402.15638).

    The direction d maximizes ``sum_k (g_k @ d)**(1 - alpha) / (1 - alpha)`` in a ball, with a logarithm for alpha = 1.
    With G the matrix of dot products, the weights are the w > 0 with ``G w = w**(-1 / alpha)``, elementwise: every loss
    falls. Small alpha favor the sum of the progress (0 would be equal weights), large ones the worst term. Solved by
    Newton's method on the convex problem whose gradient this is. Where the gradients' directions cancel, as opposite
    ones do, the weights would grow without end. So no term's share of the update becomes more than about 1e4 times the
    largest share that any term would have alone. With an alpha far from 1 and gradients of very different lengths, use
    ``normalized=True``: their shares would differ by more orders of magnitude than float64 has.

    Up to eight terms nothing waits for the device: 25 steps. Of more, at most 100, on the host: one wait.

    Args:
        alpha: the kind of fairness, above 0.
        preference: how much each term's progress counts in the sum; at 0 it does not.
        normalized: whether to weight the gradients divided by their norms.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: an ``alpha`` that is no finite number above 0, or as in :class:`Rule`.
    """

    shown: ClassVar[tuple[str, ...]] = ("alpha",)

    def __init__(
        self,
        alpha: float = 2.0,
        *,
        preference: TermWeights = None,
        normalized: bool = False,
        parameters: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(preference=preference, normalized=normalized, parameters=parameters)
        check_not_negative("alpha", alpha)
        if alpha == 0:
            raise ValueError("alpha is 0; it must be above 0 (FixedWeights() is what it would be with 0)")
        self.alpha = alpha

    def coefficients(self, cosines: Tensor, norms: Tensor, preference: Tensor) -> Tensor:
        # In coefficients y of unit vectors: C y = y**(-1 / alpha) * right, right = (norms * preference)**(1 / alpha) /
        # norms. Terms that do not count are given a problem of their own, with the solution 1.
        counts = preference > 0
        matrix = torch.where(counts & counts[:, None], cosines, torch.eye(len(norms), device=norms.device))
        log_norms = torch.where(counts, norms, 1.0).log()
        log_right = (log_norms + torch.where(counts, preference, 1.0).log()) / self.alpha - log_norms
        return torch.where(counts, self._solve(matrix, log_right), 0.0)

    def _solve(self, matrix: Tensor, log_right: Tensor) -> Tensor:
        """Return the y above 0 with ``matrix @ y = exp(log_right) * y**(-1 / alpha)``."""
        problem = Fairness(matrix, log_right, self.alpha)
        y = problem.alone.exp()
        halves = 0.5 ** torch.arange(HALVINGS, dtype=matrix.dtype, device=matrix.device)
        halves = torch.nn.functional.pad(halves, (0, 1))  # the last is 0: to stay is always possible
        can_look = matrix.device.type == "cpu"
        for _ in range(STEPS_AT_MOST if can_look else STEPS):
            slope, curvature = problem.derivatives(y)
            unit = curvature.diagonal().rsqrt()  # so that the system is of no scale
            step = unit * solve((unit * curvature * unit[:, None])[None], -(unit * slope)[None, :, None])[0, :, 0]
            step = step.nan_to_num(0.0, 0.0, 0.0)
            tried = y * (1.0 + halves[:, None] * step).clamp(min=0.05)  # [HALVINGS + 1, K], above 0
            values, rounding = problem.values(tried)
            is_least = values <= values.amin() + rounding[-1]
            y = tried.index_select(0, is_least.to(torch.int8).argmax()[None])[0]
            if can_look and step.abs().amax() < 1e-10:
                break
        return y


class Fairness:
    """The convex problem of FairGrad.

    It is ``y @ matrix @ y / 2 - sum(right * y**(1 - 1 / alpha)) / (1 - 1 / alpha)``, with a logarithm for alpha = 1,
    and a wall where a y comes to LARGEST times what the largest were without the other terms.
    """

    def __init__(self, matrix: Tensor, log_right: Tensor, alpha: float) -> None:
        self.matrix = matrix
        self.log_right = log_right
        self.alpha = alpha
        self.power = 1 - 1 / alpha
        self.alone = log_right * alpha / (alpha + 1)  # logarithms of the solution of unit vectors at right angles
        self.largest = self.alone.amax()

    def pushes(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return how strongly y is pushed up, and how strongly the wall pushes it down, each times y."""
        log_y = y.log()
        wall = 2 * self.largest + STEEPNESS * (log_y - self.largest - math.log(LARGEST))
        return (self.log_right + self.power * log_y).exp(), wall.exp()

    def derivatives(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient times y, ``[K]``, and the second derivatives times y from both sides, ``[K, K]``."""
        up, down = self.pushes(y)
        slope = y * (self.matrix @ y) - up + down
        return slope, y * self.matrix * y[:, None] + torch.diag(up / self.alpha + (STEEPNESS - 1) * down)

    def values(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return for ``[S, K]`` coefficients the values, ``[S]``, and their rounding, ``[S]``."""
        up, down = self.pushes(y)
        squares = (y @ self.matrix * y).sum(dim=1) / 2
        gains = up * y.log() if self.power == 0 else up / self.power
        values = squares - gains.sum(dim=1) + down.sum(dim=1) / STEEPNESS
        rounding = 1e-15 * (y.sum(dim=1) ** 2 + gains.abs().sum(dim=1))
        return values.nan_to_num(torch.inf, torch.inf, torch.inf), rounding


class NashMTL(FairGrad):
    """Take the Nash bargaining solution of the terms: Nash-MTL (Navon et al., arXiv 2202.01017).

    The direction maximizes the product of the terms' progress, ``prod_k g_k @ d``, in a ball. With G the matrix of dot
    products, the weights are the w > 0 with ``G w = 1 / w``, elementwise: FairGrad with alpha = 1. The scales of the
    losses do not matter to the update. Solved exactly, where the published code stops after some steps of a
    linearization. Where the gradients' directions cancel, weights are bounded, as in :class:`FairGrad`.

    Up to eight terms nothing waits for the device: 25 steps. Of more, at most 100, on the host: one wait.

    Args:
        preference: bargaining powers: the exponents of the terms' progress.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: as in :class:`Rule`.
    """

    shown: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, preference: TermWeights = None, parameters: Tensor | Iterable[Tensor] | None = None) -> None:
        super().__init__(alpha=1.0, preference=preference, parameters=parameters)
