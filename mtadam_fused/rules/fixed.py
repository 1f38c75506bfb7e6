"""Fixed weights."""

from collections.abc import Hashable, Sequence

from torch import Tensor

from ..hyperparameters import TermWeights
from .per_term import PerTerm
from .rule import Rule


class FixedWeights(Rule):
    """Weight the terms the same way at every step: Adam on the weighted sum of the losses.

    Args:
        weights: a mapping from the terms' names, or a sequence in the terms' order; default 1 for each. A negative one
            maximizes that loss.

    Raises:
        ValueError: weights that are not finite numbers; at a step, not one for each term.
    """

    needs_gram = False

    def __init__(self, weights: TermWeights = None) -> None:
        super().__init__()
        self._weights = PerTerm(weights, "weights")

    @property
    def weights(self) -> TermWeights:
        """The weights, as given."""
        return self._weights.given

    def check_terms(self, terms: Sequence[Hashable], *, allow_more: bool) -> None:
        self._weights.check_terms(terms, allow_more=allow_more)

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        return self._weights.like(losses)

    def __repr__(self) -> str:
        return f"FixedWeights({self.weights!r})"
