"""Optimizers for networks with several loss terms, fused into native kernels."""

from importlib.metadata import PackageNotFoundError, version

from . import rules, weighting
from .balanced_adam import BalancedAdam
from .combined_adam import CombinedAdam
from .mtadam import MTAdam
from .recorder import Recorder

try:
    __version__ = version("mtadam_fused")
except PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = ["BalancedAdam", "CombinedAdam", "MTAdam", "Recorder", "__version__", "rules", "weighting"]
