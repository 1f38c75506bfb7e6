"""Parameters, gradients and state as the kernels take them, and state as checkpoints hold it."""

from .param_table import ParamTable
from .step_args import StepArgs

__all__ = ["ParamTable", "StepArgs"]
