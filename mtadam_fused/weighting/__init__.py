"""Strategies that weight the losses: ``total = weighting(losses)``, then ``total.backward()`` and any optimizer.

They are those of "Strategies for Balancing Multiple Loss Functions in Deep Learning", with one backward pass whatever
the number of terms, as torch.nn.Modules: what they learn or measure is in their ``state_dict``.
"""

from .base import Weighting
from .divisors import EqualWeights, InitialLoss, PriorLoss, RealTimeLoss
from .expected import class_prior_loss, initial_class_loss, initial_regression_loss, regression_prior_loss
from .rule import RuleWeighting
from .uncertainty import KendallUncertainty, Uncertainty

__all__ = [
    "EqualWeights",
    "InitialLoss",
    "KendallUncertainty",
    "PriorLoss",
    "RealTimeLoss",
    "RuleWeighting",
    "Uncertainty",
    "Weighting",
    "class_prior_loss",
    "initial_class_loss",
    "initial_regression_loss",
    "regression_prior_loss",
]
