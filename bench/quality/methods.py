"""The methods that are compared: one line each, the one that makes the optimizer."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bench.demo.strategies import Sum, WeightedAdam
from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import PCGrad
from mtadam_fused.weighting import InitialLoss

Parameters = list[nn.Parameter]


@dataclass(frozen=True)
class Method:
    """One way to train on the loss terms."""

    name: str
    make: Callable[[Parameters, float, int], TermOptimizer | WeightedAdam]  # from parameters, lr and seed
    equal_weights: bool = False  # instead of the problem's bad ones
    sees_order: bool = False  # so that it is tried with each order of the terms


ADAM = Method("Adam", lambda params, lr, seed: WeightedAdam(params, Sum(), lr))
ADAM_EQUAL = Method("Adam, weights 1", ADAM.make, equal_weights=True)
INITIAL = Method("InitialLoss", lambda params, lr, seed: WeightedAdam(params, InitialLoss(batches=10), lr))
PUBLISHED = Method("MTAdam", lambda params, lr, seed: MTAdam(params, lr), sees_order=True)
BALANCED = Method("BalancedAdam", lambda params, lr, seed: BalancedAdam(params, lr))
PCGRAD = Method("PCGrad", lambda params, lr, seed: CombinedAdam(params, PCGrad(seed=seed), lr))

METHODS = (ADAM_EQUAL, ADAM, INITIAL, PUBLISHED, BALANCED, PCGRAD)
BY_NAME = {method.name: method for method in METHODS}
