"""The strategies that the demo trains with: one line each, the one that makes the optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.workloads.digits import TERMS
from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import MGDA, GradientNormalization, GradNorm, PCGrad
from mtadam_fused.weighting import InitialLoss, KendallUncertainty, PriorLoss, RealTimeLoss, Uncertainty


@dataclass(frozen=True)
class Task:
    """The network, the learning rate and all else that a strategy may use to make an optimizer."""

    network: nn.Sequential
    lr: float
    seed: int
    priors: dict[str, float]  # loss of each term by a model that knows only how frequent the classes are

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters of the network."""
        return list(self.network.parameters())

    @property
    def last_layer(self) -> list[Tensor]:
        """Return the last weights that all terms share: through the softmax every class reaches each of them."""
        return [self.network.get_submodule("linear").get_parameter("weight")]


class WeightedAdam(torch.optim.Adam):
    """torch.optim.Adam on a weighted sum of the losses, with MTAdam's interface. It trains the weighting too."""

    def __init__(self, params: Iterable[Tensor], weighting: nn.Module, lr: float) -> None:
        super().__init__([*params, *weighting.parameters()], lr=lr)
        self.weighting = weighting

    def backward(self, losses: dict[str, Tensor]) -> None:
        """Run one backward pass, through the sum."""
        self.weighting(losses).backward()


class Sum(nn.Module):
    """The sum of the losses, as they come."""

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Return a scalar."""
        return torch.stack(list(losses.values())).sum()


class PositiveRealTimeLoss(RealTimeLoss):
    """RealTimeLoss without the losses that are zero to rounding, which it refuses."""

    def forward(self, losses: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        """Return a scalar."""
        positive = {term: loss for term, loss in losses.items() if loss > 0}
        return super().forward(positive) if positive else Sum()(losses)


@dataclass(frozen=True)
class Strategy:
    """One way to train on the loss terms."""

    name: str
    make: Callable[[Task], TermOptimizer | WeightedAdam]
    bad_weights: bool = True


KINDS = ["classification"] * len(TERMS)

# All is at its default but the learning rate, which the demo chooses, and the batches that InitialLoss measures.
ADAM_BALANCED = Strategy("Adam, balanced sum", lambda t: WeightedAdam(t.parameters, Sum(), t.lr), bad_weights=False)
ADAM = Strategy("Adam, bad weights", lambda t: WeightedAdam(t.parameters, Sum(), t.lr))
MTADAM = Strategy("MTAdam, bad weights", lambda t: MTAdam(t.parameters, t.lr))

METHODS = (ADAM_BALANCED, ADAM, MTADAM)
STRATEGIES = (
    *METHODS,
    Strategy("InitialLoss", lambda t: WeightedAdam(t.parameters, InitialLoss(batches=10), t.lr)),
    Strategy("PriorLoss", lambda t: WeightedAdam(t.parameters, PriorLoss(t.priors), t.lr)),
    Strategy("RealTimeLoss", lambda t: WeightedAdam(t.parameters, PositiveRealTimeLoss(), t.lr)),
    Strategy("Uncertainty", lambda t: WeightedAdam(t.parameters, Uncertainty(TERMS), t.lr)),
    Strategy("KendallUncertainty", lambda t: WeightedAdam(t.parameters, KendallUncertainty(TERMS, KINDS), t.lr)),
    Strategy("GradientNormalization", lambda t: CombinedAdam(t.parameters, GradientNormalization(), t.lr)),
    Strategy("GradNorm", lambda t: CombinedAdam(t.parameters, GradNorm(parameters=t.last_layer), t.lr)),
    Strategy("PCGrad", lambda t: CombinedAdam(t.parameters, PCGrad(seed=t.seed), t.lr)),
    Strategy("MGDA", lambda t: CombinedAdam(t.parameters, MGDA(), t.lr)),
    Strategy('MGDA("loss+")', lambda t: CombinedAdam(t.parameters, MGDA("loss+"), t.lr)),
)
BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}
