"""Rules that find the weights of loss terms from their gradients, for :class:`mtadam_fused.CombinedAdam`."""

from .fixed import FixedWeights
from .gradnorm import GradNorm
from .mgda import MGDA
from .normalization import GradientNormalization
from .pcgrad import PCGrad
from .rule import Rule

__all__ = ["MGDA", "FixedWeights", "GradNorm", "GradientNormalization", "PCGrad", "Rule"]
