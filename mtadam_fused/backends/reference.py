"""The kernels in pure PyTorch, on any device: the functions of ``mtadam_fused.reference`` over a table's rows."""

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

from .. import reference
from ..distributed.dtensor import to_local
from ..tables.step_args import StepArgs


def status(device: torch.device | None = None) -> tuple[bool, str]:
    """Return that the reference can be used everywhere."""
    return True, "pure PyTorch, any device"


class ReferenceBackend:
    """See :class:`mtadam_fused.backends.Backend`."""

    name = "reference"

    def supports(self, device: torch.device) -> bool:
        return True

    def term_norms(self, args: StepArgs) -> None:
        grads = list(zip(*args.grads, strict=True))
        args.table.norms.copy_(reference.term_norms(grads, like=args.table.norms))

    def balance(self, args: StepArgs) -> None:
        table = args.table

        def per_row(values: Sequence, dtype: torch.dtype) -> Tensor:
            """Return the ``values`` of the groups, for each row."""
            return torch.tensor([values[i] for i in table.group_indices], dtype=dtype, device=table.device)

        count_step(args)
        rules = [group.norm_rule for group in args.groups]
        rule = reference.BalanceRule(
            beta3=per_row([[rule.beta3] for rule in rules], torch.float64),
            first_nonzero=per_row([[rule.first_nonzero] for rule in rules], torch.bool),
            norms=per_row([[rule.norms] for rule in rules], torch.int64),
            anchor=per_row([[anchor] for anchor in args.anchors], torch.int64),
        )
        weights = per_row(args.weights, table.dtype)
        norm_avg, scales = reference.balance(table.norms, table.norm_avg, weights, table.steps, rule)
        table.norm_avg.copy_(norm_avg)
        table.scales.copy_(scales)

    def mtadam_update(self, args: StepArgs) -> None:
        table = args.table
        if not table.layout.per_term:
            return update_combined(args)
        for row in compress(range(len(table.params)), args.has_grad):
            combined = reference.mtadam_update(
                table.dense[row].detach(),
                [term[row] for term in args.grads],
                table.scales[row],
                to_local(table.states[row]["exp_avg"]),
                [term[row] for term in table.exp_avg_sqs],
                [term[row] for term in table.max_exp_avg_sqs],
                row_scalars(args, row),
            )
            leave_combined(args, row, combined)

    def mtadam_step(self, args: StepArgs) -> None:
        self.term_norms(args)
        self.balance(args)
        self.mtadam_update(args)

    def term_gram(self, args: StepArgs) -> None:
        grads = list(zip(*args.grads, strict=True))
        args.table.gram.copy_(reference.term_gram(grads, args.table.device))

    def combined_adam(self, args: StepArgs) -> None:
        count_step(args)
        update_combined(args)


def count_step(args: StepArgs) -> None:
    """Count the step of each row that a term reaches."""
    args.table.steps += torch.tensor(args.has_grad, device=args.table.device)


def update_combined(args: StepArgs) -> None:
    """Make Adam's step, with one second moment, on the sum of the gradients times the table's scales."""
    table = args.table
    for row in compress(range(len(table.params)), args.has_grad):
        combined = reference.combined_adam(
            table.dense[row].detach(),
            [term[row] for term in args.grads],
            table.scales[row],
            to_local(table.states[row]["exp_avg"]),
            to_local(table.states[row]["exp_avg_sq"]),
            table.max_exp_avg_sqs[0][row],
            row_scalars(args, row),
        )
        leave_combined(args, row, combined)


def row_scalars(args: StepArgs, row: int) -> reference.RowScalars:
    """Return the scalars of a row's step, as the updates of ``mtadam_fused.reference`` take them."""
    table = args.table
    group = args.groups[table.group_indices[row]]
    lr = group.lr.reshape(()).to(table.dtype) if isinstance(group.lr, Tensor) else group.lr
    beta1, beta2 = group.betas[:2]
    l2_decay, decoupled_decay = group.decays
    factors = reference.step_factors(lr, beta1, beta2, group.eps, decoupled_decay, table.steps[row].to(table.dtype))
    return reference.RowScalars(group.grad_sign, beta1, beta2, l2_decay, factors)


def leave_combined(args: StepArgs, row: int, combined: Tensor) -> None:
    """Copy a row's combined gradient to where it is wanted."""
    if args.combined is not None and (out := args.combined[row]) is not None:
        out.copy_(combined)
