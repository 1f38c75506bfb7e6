"""Rules that find the weights of loss terms from their gradients, for :class:`mtadam_fused.CombinedAdam`."""

from .aligned_mtl import AlignedMTL
from .cagrad import CAGrad
from .conflict_free import ConFIG
from .fairgrad import FairGrad, NashMTL
from .fixed import FixedWeights
from .gradnorm import GradNorm
from .imtlg import IMTLG
from .mgda import MGDA
from .normalization import GradientNormalization
from .pcd import PCD
from .pcgrad import PCGrad
from .rule import Rule
from .upgrad import UPGrad

__all__ = [
    "IMTLG",
    "MGDA",
    "PCD",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "FairGrad",
    "FixedWeights",
    "GradNorm",
    "GradientNormalization",
    "NashMTL",
    "PCGrad",
    "Rule",
    "UPGrad",
]
