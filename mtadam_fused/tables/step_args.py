"""The arguments of one step, as every backend takes them."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from torch import Tensor

from ..hyperparameters import Hyperparameters
from .layout import TermGradients
from .param_table import ParamTable


@dataclass
class StepArgs:
    """One step of one table."""

    table: ParamTable
    grads: TermGradients  # [K][L], in the strides of table.dense, None where absent
    groups: Sequence[Hyperparameters]  # of the parameter groups
    weights: list[list[float]]  # [groups][K] the user's term weights
    combined: list[Tensor | None] | None = None  # [L] where to leave the combined gradients, in the parameters' dtypes

    @cached_property
    def has_grad(self) -> list[bool]:
        """[L] whether any term reaches the parameter."""
        first, *others = self.grads
        has_grad = [grad is not None for grad in first]
        for row in others:
            if all(has_grad):
                break
            has_grad = [known or grad is not None for known, grad in zip(has_grad, row, strict=True)]
        return has_grad

    @cached_property
    def group_table(self) -> array:
        """``Group`` of csrc/launch.h, for each group; NaN for a learning rate on the device."""
        table = array("d")
        for group in self.groups:
            lr = math.nan if self.has_lr_on_device(group) else float(group.lr)
            l2, decoupled = (0.0, group.weight_decay) if group.decoupled_weight_decay else (group.weight_decay, 0.0)
            grad_sign = -1.0 if group.maximize else 1.0
            beta3, first_nonzero = group.norm_rule
            table.extend((lr, *group.betas[:2], beta3, group.eps, l2, decoupled, grad_sign, first_nonzero))
        return table

    @cached_property
    def weight_table(self) -> array:
        """[groups, K]"""
        return array("d", chain.from_iterable(self.weights))

    def has_lr_on_device(self, group: Hyperparameters) -> bool:
        """Return whether the group's learning rate is a Tensor on an accelerator, which the host must not read."""
        device = self.table.device
        return isinstance(group.lr, Tensor) and group.lr.device == device and device.type != "cpu"

    @property
    def needs_copy(self) -> list[int]:
        """Rows of the parameters with gaps that any term reaches."""
        return [row for row in self.table.needs_copy if self.has_grad[row]]
