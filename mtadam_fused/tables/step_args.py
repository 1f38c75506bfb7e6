"""The arguments of one step, as every backend takes them.

:meth:`StepArgs.members` is the one place in Python that names what the native kernels are given: a new pointer needs a
line there, one in csrc/launch.h, and the kernel that reads it.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from ..hyperparameters import Hyperparameters
from .layout import TermGradients
from .param_table import STORAGE_TYPES, ParamTable, addresses

# Members of ``Group`` in csrc/launch.h.
GROUP_FIELDS = (
    *("lr", "beta1", "beta2", "beta3", "eps", "l2_decay", "decoupled_decay", "grad_sign"),
    *("first_nonzero", "norms", "anchor"),
)


@dataclass
class StepArgs:
    """One step of one table."""

    table: ParamTable
    grads: TermGradients  # [K][L], in the strides of table.dense, None where absent
    groups: Sequence[Hyperparameters]  # of the parameter groups
    weights: list[list[float]]  # [groups][K] the user's term weights
    anchors: list[int]  # [groups] the codes of what the terms are balanced against
    combined: list[Tensor | None] | None = None  # [L] where to leave the combined gradients, in the parameters' dtypes
    grad_scale: Tensor | None = None  # float32 scalar, what a GradScaler has multiplied the gradients by
    found_inf: Tensor | None = None  # float32 scalar, not 0 where it found one that is not finite: the step is skipped

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

    def allocate_combined(self) -> None:
        """Make memory for the combined gradients of the parameters that any term reaches."""
        pairs = zip(self.table.dense, self.has_grad, strict=True)
        self.combined = [torch.empty_like(dense) if has_grad else None for dense, has_grad in pairs]

    def where_present(self, values: Tensor) -> Tensor:
        """Return ``values`` [L, K], with 0 where the term does not reach the parameter."""
        present = [[grad is not None for grad in row] for row in self.grads]
        if all(map(all, present)):
            return values
        return values.where(torch.tensor(present, device="cpu").T.to(values.device, non_blocking=True), 0.0)

    @cached_property
    def group_table(self) -> array:
        """``Group`` of csrc/launch.h, for each group; NaN for a learning rate on the device."""
        table = array("d")
        for group, anchor in zip(self.groups, self.anchors, strict=True):
            lr = math.nan if self.has_lr_on_device(group) else float(group.lr)
            beta3, first_nonzero, norms = group.norm_rule
            table.extend((lr, *group.betas[:2], beta3, group.eps, *group.decays, group.grad_sign))
            table.extend((first_nonzero, norms, anchor))
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

    def copy_in(self) -> None:
        """Copy the parameters with gaps to dense memory, which the kernels need."""
        for row in self.needs_copy:
            self.table.dense[row].copy_(self.table.local_params[row])

    def copy_out(self) -> None:
        """Copy the parameters with gaps back from dense memory."""
        for row in self.needs_copy:
            self.table.local_params[row].copy_(self.table.dense[row])

    def members(self) -> dict[str, int]:
        """Return the members of ``StepArgs`` in csrc/launch.h, in their order: sizes and addresses in host memory.

        Addresses of tables are valid as long as this object and its table. May make all gradients of a row float32.
        """
        table = self.table
        return {
            "rows": len(table.params),
            "terms": table.terms,
            "moments": len(table.exp_avg_sqs),
            "is_shared": int(not table.layout.per_term),
            "row": address_of(table.row_table),
            "group": address_of(self.group_table),
            "weight": address_of(self.weight_table),
            "grad": address_of(self.grad_table),
            "grad_type": address_of(self.grad_types),
            "exp_avg_sq": address_of(table.exp_avg_sq_table),
            "max_exp_avg_sq": address_of(table.max_exp_avg_sq_table),
            "combined": address_of(self.combined_table),
            "steps": table.steps.data_ptr(),
            "norm": table.norms.data_ptr(),
            "norm_avg": table.norm_avg.data_ptr(),
            "scale": table.scales.data_ptr(),
            "gram": 0 if table.layout.has_norms else table.gram.data_ptr(),
            "grad_scale": 0 if self.grad_scale is None else self.grad_scale.data_ptr(),
            "found_inf": 0 if self.found_inf is None else self.found_inf.data_ptr(),
        }

    @cached_property
    def grad_types(self) -> array:
        """[L] codes of STORAGE_TYPES; makes all gradients of a row float32 where its terms have different dtypes."""
        table = self.table
        if not table.has_narrow_params:
            return table.param_types
        types = array("q", table.param_types)
        for row in range(len(types)):
            dtypes = {grad.dtype for term in self.grads if (grad := term[row]) is not None}
            if len(dtypes) > 1:
                for term in self.grads:
                    term[row] = None if (grad := term[row]) is None else grad.float()
            if dtypes:
                types[row] = STORAGE_TYPES[torch.float32 if len(dtypes) > 1 else dtypes.pop()]
        return types

    @cached_property
    def grad_table(self) -> array:
        """[K, L] addresses, 0 where absent; of the gradients that ``grad_types`` has made alike."""
        _ = self.grad_types  # first: it may replace gradients
        return addresses(self.grads)

    @cached_property
    def combined_table(self) -> array:
        """[L] addresses for the combined gradients, 0 where they are not wanted."""
        return self.table.null_addresses if self.combined is None else addresses([self.combined])


def address_of(values: array) -> int:
    """Return the address of the first of ``values``."""
    return values.buffer_info()[0]
