"""What a problem of the study is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

Losses = Mapping[str, Tensor]


@dataclass(frozen=True)
class Training:
    """One seed's network and data, at the beginning.

    ``losses`` makes the next batch's loss terms, without weights, in the problem's own order. ``score`` is what is
    reported; ``validation``, where there is a split, is the same on data that only chooses the learning rate.
    """

    network: nn.Module
    losses: Callable[[], Losses]
    score: Callable[[], float]
    validation: Callable[[], float] | None = None


@dataclass(frozen=True)
class Weighting:
    """Weights of the loss terms, drawn for each seed."""

    name: str
    draw: Callable[[int], Mapping[str, float]]  # a term that is not named has the weight 1


EQUAL = Weighting("all 1", lambda seed: {})


@dataclass(frozen=True)
class Problem:
    """A network, its loss terms, bad weights for them, and how well it was trained."""

    name: str
    start: Callable[[int], Training]  # from a seed
    steps: int
    weightings: tuple[Weighting, ...]  # bad ones, and all 1
    score: str  # what it is called
    worst: float  # the score of a run that diverged
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of the terms, by name; only MTAdam sees it
    by_hand: tuple[Weighting, ...] = ()  # among which a user might search the best for Adam
    higher_is_better: bool = False
    spans_decades: bool = False  # so that medians and ranges tell more than means
    percent: bool = False
    cosine: bool = False  # whether the learning rate falls to zero, along a cosine
    default_lr: float = 1e-3
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)

    def draw_weights(self, name: str, seed: int) -> Mapping[str, float]:
        """Draw the weights that have this name."""
        return next(w for w in (EQUAL, *self.weightings, *self.by_hand) if w.name == name).draw(seed)


def factors(*terms: str, by: float) -> Callable[[int], Mapping[str, float]]:
    """Return the drawing of weights that gives these terms this weight, whatever the seed."""
    return lambda seed: dict.fromkeys(terms, by)
