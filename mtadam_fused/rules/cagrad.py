"""CAGrad."""

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..hyperparameters import TermWeights, check_not_negative
from .gram_rule import GramRule, shares
from .min_norm import into_simplex, least_and_slope
from .supports import EXHAUSTIVE, all_supports, walk
from .unit_gram import UnitGram

STATIONARY = 1e-12  # a point this short (its square), beside the vectors that make it up, is zero


class CAGrad(GramRule):
    """Take, near the mean gradient, the direction that lowers the worst loss the most: CAGrad (arXiv 2110.14048).

    With g_0 the mean gradient, the direction is the d with ``||d - g_0|| <= c ||g_0||`` whose least product with a
    gradient is the largest. It is ``g_0 + c ||g_0|| x / ||x||``, where x is the combination ``sum_k q_k g_k``, q of the
    simplex, that minimizes ``x @ g_0 + c ||g_0|| ||x||``; the weights are those of the gradients in it, not divided by
    ``1 + c**2`` as some published code does. c = 0 is the mean. With c >= 1 no loss grows. Where x is zero, no
    direction near g_0 lowers all losses, and the weights are q. Solved exactly.

    Up to eight terms nothing waits for the device. Of more, an active set on the host: one wait.

    Args:
        c: how far from the mean the direction may be.
        preference: what the mean of the gradients is weighted by.
        normalized: whether to weight the gradients divided by their norms.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: a ``c`` that is no finite number of at least 0, or as in :class:`Rule`.
    """

    shown: ClassVar[tuple[str, ...]] = ("c",)

    def __init__(
        self,
        c: float = 0.5,
        *,
        preference: TermWeights = None,
        normalized: bool = False,
        parameters: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(preference=preference, normalized=normalized, parameters=parameters)
        check_not_negative("c", c)
        self.c = c

    def coefficients(self, cosines: Tensor, norms: Tensor, preference: Tensor) -> Tensor:
        mean = shares(preference) * norms
        if self.c == 0:
            return mean
        products = cosines @ mean
        radius = self.c * (mean @ products).clamp(min=0.0).sqrt()
        unit = UnitGram(cosines, norms, torch.where(norms > 0, 1.0 / norms, 0.0))
        y = WorstCase(unit, products, radius).solve()
        square = y @ cosines @ y
        moved = mean + radius / square.clamp(min=1e-300).sqrt() * y
        return torch.where(square <= STATIONARY * y.sum() ** 2, y, moved)


class WorstCase(NamedTuple):
    """The problem of CAGrad: over the hull of the gradients, minimize ``f(x) = x @ g_0 + radius * ||x||``.

    In coefficients y of unit vectors. On a support, let b be the hull's point of least norm, and r the projection of
    g_0 on the differences of the support's points. There the least point of f is
    ``b - r * ||b|| / sqrt(radius**2 - ||r||**2)``; if ``||r||`` is not below the radius, f falls along -r for ever.
    """

    unit: UnitGram
    products: Tensor  # [K], of g_0 with the unit vectors
    radius: Tensor

    def solve(self) -> Tensor:
        """Return the solution, ``[K]``."""
        if len(self.products) > EXHAUSTIVE:
            return self.walk()
        supports = all_supports(self.unit.cosines)[1:]
        inside = into_simplex(self.on_supports(supports), self.unit)
        least = self.values(inside)[:, 0].nan_to_num(torch.inf, torch.inf, -torch.inf).argmin()
        return inside.index_select(0, least[None])[0].nan_to_num(0.0)

    def values(self, y: Tensor) -> Tensor:
        """Return f, ``[S, 1]``, at coefficients ``[S, K]``."""
        return (y @ self.products)[:, None] + self.radius * self.length(y)

    def length(self, y: Tensor) -> Tensor:
        """Return ``[S, 1]``, the norms of the points with coefficients ``[S, K]``."""
        return (y @ self.unit.cosines * y).sum(dim=1, keepdim=True).clamp(min=0.0).sqrt()

    def on_supports(self, supports: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the least points of ``[S, K]`` supports; where there is none, one behind the border, seen from ``y``.

        Without ``y``, not finite where there is none.
        """
        b, r = least_and_slope(self.unit, supports, self.products)
        room = self.radius**2 - self.length(r) ** 2
        least = b - r * self.length(b) / room.sqrt()
        if y is None:
            return least
        to_border = torch.where(r > 0, y / r, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(room > 0, least, y - 2.0 * to_border * r)

    def walk(self) -> Tensor:
        """Walk to the solution from the best of the gradients, on the host."""
        is_zero = self.unit.norms == 0
        if is_zero.all():
            return torch.zeros_like(self.products)
        corners = torch.diag(self.unit.norms)
        best = torch.where(is_zero, torch.inf, self.values(corners)[:, 0]).argmin()

        def slopes(y: Tensor) -> Tensor:
            direction = self.products + self.radius * (y @ self.unit.cosines) / self.length(y).clamp(min=1e-300)
            rounding = 1e-12 * (y.abs() @ self.products.abs()[:, None] + self.radius * self.length(y))
            return torch.where(is_zero, torch.inf, direction * self.unit.norms - self.values(y) + rounding)

        return walk(corners[best][None], lambda y, support: self.on_supports(support, y), slopes)[0]
