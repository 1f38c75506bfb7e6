"""Strategies that weight the losses: ``total = weighting(losses)``, then ``total.backward()`` and any optimizer.

They are those of "Strategies for Balancing Multiple Loss Functions in Deep Learning", and more that are in wide use,
with one backward pass whatever the number of terms, as torch.nn.Modules: what they learn or measure is in their
``state_dict``.
"""

from .base import Weighting
from .divisors import EqualWeights, InitialLoss, PriorLoss, RealTimeLoss
from .expected import class_prior_loss, initial_class_loss, initial_regression_loss, regression_prior_loss
from .history import HistoryWeighting
from .imtl import IMTLL
from .joint import STCH, GeometricMean
from .random_weighting import RandomWeighting
from .relobralo import ReLoBRaLo
from .rule import RuleWeighting
from .trends import DWA, SoftAdapt
from .uncertainty import KendallUncertainty, Uncertainty

__all__ = [
    "DWA",
    "EqualWeights",
    "GeometricMean",
    "HistoryWeighting",
    "IMTLL",
    "InitialLoss",
    "KendallUncertainty",
    "PriorLoss",
    "RandomWeighting",
    "ReLoBRaLo",
    "RealTimeLoss",
    "RuleWeighting",
    "STCH",
    "SoftAdapt",
    "Uncertainty",
    "Weighting",
    "class_prior_loss",
    "initial_class_loss",
    "initial_regression_loss",
    "regression_prior_loss",
]
