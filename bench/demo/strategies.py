"""The strategies that the demo trains with: one line each, the one that makes the optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.workloads.digits import TERMS
from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import (
    IMTLG,
    MGDA,
    PCD,
    AlignedMTL,
    CAGrad,
    ConFIG,
    FairGrad,
    GradientNormalization,
    GradNorm,
    NashMTL,
    PCGrad,
    Rule,
    UPGrad,
)
from mtadam_fused.weighting import (
    DWA,
    IMTLL,
    STCH,
    GeometricMean,
    InitialLoss,
    KendallUncertainty,
    PriorLoss,
    RandomWeighting,
    RealTimeLoss,
    ReLoBRaLo,
    SoftAdapt,
    Uncertainty,
)


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


class Positive(nn.Module):
    """A weighting without the losses that are zero to rounding, which it refuses."""

    def __init__(self, weighting: nn.Module) -> None:
        super().__init__()
        self.weighting = weighting

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Return a scalar."""
        positive = {term: loss for term, loss in losses.items() if loss > 0}
        return self.weighting(positive) if positive else Sum()(losses)


Make = Callable[[Task], TermOptimizer | WeightedAdam]


@dataclass(frozen=True)
class Strategy:
    """One way to train on the loss terms, on weights of ``bench.demo.data``."""

    method: str
    weights: str
    make: Make

    @property
    def name(self) -> str:
        """Return the name of method and weights together."""
        return f"{self.method}, {self.weights}"


KINDS = ["classification"] * len(TERMS)
PAPER, DECADES = "U(0, 1000)", "10^U(-3, 3)"
BATCHES = 16  # of an epoch


def weighted(weighting: Callable[[Task], nn.Module]) -> Make:
    """Return the making of Adam on the sum that a weighting makes."""
    return lambda t: WeightedAdam(t.parameters, weighting(t), t.lr)


def combined(rule: Callable[[Task], Rule]) -> Make:
    """Return the making of CombinedAdam with a rule."""
    return lambda t: CombinedAdam(t.parameters, rule(t), t.lr)


# All is at its default but the learning rate, which the demo chooses, and the batches that InitialLoss measures.
MAKERS: dict[str, Make] = {
    "Adam": weighted(lambda t: Sum()),
    "InitialLoss": weighted(lambda t: InitialLoss(batches=10)),
    "MTAdam": lambda t: MTAdam(t.network.named_parameters(), t.lr),
    "BalancedAdam": lambda t: BalancedAdam(t.network.named_parameters(), t.lr),
}
WEIGHTINGS: dict[str, Make] = {
    "PriorLoss": weighted(lambda t: PriorLoss(t.priors)),
    "RealTimeLoss": weighted(lambda t: Positive(RealTimeLoss())),
    "Uncertainty": weighted(lambda t: Uncertainty(TERMS)),
    "KendallUncertainty": weighted(lambda t: KendallUncertainty(TERMS, KINDS)),
    "IMTLL": weighted(lambda t: IMTLL(TERMS)),
    "DWA": weighted(lambda t: Positive(DWA(batches=BATCHES))),
    "SoftAdapt": weighted(lambda t: SoftAdapt()),
    "ReLoBRaLo": weighted(lambda t: Positive(ReLoBRaLo(seed=t.seed))),
    "GeometricMean": weighted(lambda t: Positive(GeometricMean())),
    "RandomWeighting": weighted(lambda t: RandomWeighting(seed=t.seed)),
    "STCH": weighted(lambda t: STCH(mu=1.0)),
}
RULES: dict[str, Make] = {
    "GradientNormalization": combined(lambda t: GradientNormalization()),
    "GradNorm": combined(lambda t: GradNorm(parameters=t.last_layer)),
    "PCGrad": combined(lambda t: PCGrad(seed=t.seed)),
    "PCGrad, last layer": combined(lambda t: PCGrad(seed=t.seed, parameters=t.last_layer)),
    "MGDA": combined(lambda t: MGDA()),
    'MGDA("loss+")': combined(lambda t: MGDA("loss+")),
    "UPGrad": combined(lambda t: UPGrad()),
    "ConFIG": combined(lambda t: ConFIG()),
    "IMTLG": combined(lambda t: IMTLG()),
    "AlignedMTL": combined(lambda t: AlignedMTL()),
    "CAGrad": combined(lambda t: CAGrad()),
    "NashMTL": combined(lambda t: NashMTL()),
    "FairGrad": combined(lambda t: FairGrad()),
    "PCD": combined(lambda t: PCD()),
}

ADAM_BALANCED = Strategy("Adam", "balanced sum", MAKERS["Adam"])
METHODS = (ADAM_BALANCED, *(Strategy(name, weights, MAKERS[name]) for weights in (DECADES, PAPER) for name in MAKERS))
STRATEGIES = (ADAM_BALANCED, *(Strategy(name, PAPER, make) for name, make in (MAKERS | WEIGHTINGS | RULES).items()))
ADAM = STRATEGIES[1]
BY_NAME = {strategy.name: strategy for strategy in (*METHODS, *STRATEGIES)}
