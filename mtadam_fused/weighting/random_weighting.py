"""Random loss weighting."""

from torch import Tensor

from ..hyperparameters import Term, TermWeights
from .base import Weighting
from .random_numbers import RandomNumbers


class RandomWeighting(Weighting):
    """sum_k w_k L_k, w = softmax(z), z drawn anew from N(0, 1) in each call: RLW (Lin et al., arXiv 2111.10603).

    A baseline that any balancing should beat. Any finite losses will do. In ``eval()`` mode nothing is drawn, and the
    weights are their expectation, 1 / K with K losses in the call.

    State: the ``seed`` and the number of ``draws`` of the random numbers. The weights go by a loss's position in the
    call. In several processes give all the same ``seed``.

    Args:
        seed: below 2**62; default one that torch's generator draws.
        priorities: as in :class:`Weighting`.

    Raises:
        ValueError: a ``seed`` out of its range, or bad priorities.
    """

    def __init__(self, *, seed: int | None = None, priorities: TermWeights = None) -> None:
        super().__init__(priorities=priorities)
        self.random = RandomNumbers(seed)

    def contributions(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the losses, randomly weighted in training."""
        if not self.training:
            return values / len(terms)
        return values * self.random.normal(len(terms), values).softmax(dim=0)
