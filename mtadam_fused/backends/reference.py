"""The kernels in pure PyTorch, on any device: the functions of ``mtadam_fused.reference`` over a table's rows."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..shards import part
from ..table import Work


def status() -> tuple[bool, str]:
    """It can be used everywhere."""
    return True, "pure PyTorch, any device"


class ReferenceBackend:
    """See :class:`mtadam_fused.backends.Backend`."""

    name = "reference"

    def serves(self, device: torch.device) -> bool:
        return True

    def term_norms(self, work: Work) -> None:
        grads = list(zip(*work.grads, strict=True))
        work.table.norms.copy_(reference.term_norms(grads, like=work.table.norms))

    def balance(self, work: Work) -> None:
        table = work.table

        def per_row(values: Sequence, dtype: torch.dtype) -> Tensor:
            """``values`` of the groups, for each row."""
            return torch.tensor([values[group] for group in table.groups], dtype=dtype, device=table.device)

        running, scales = reference.balance(
            table.norms,
            table.running,
            per_row(work.weights, table.dtype),
            per_row([[g.norm_rule[0]] for g in work.groups], table.dtype),
            per_row([[g.norm_rule[1]] for g in work.groups], torch.bool),
        )
        table.running.copy_(running)
        table.scales.copy_(scales)
        table.steps += torch.tensor(work.reached, device=table.device)

    def mtadam_update(self, work: Work) -> None:
        table = work.table
        for row in compress(range(len(table.params)), work.reached):
            combined = reference.mtadam_update(
                table.dense[row].detach(),
                [term[row] for term in work.grads],
                table.scales[row],
                part(table.states[row]["exp_avg"]),
                [term[row] for term in table.exp_avg_sqs],
                [term[row] for term in table.max_exp_avg_sqs],
                table.steps[row],
                **adam_arguments(work, row),
            )
            leave_combined(work, row, combined)

    def mtadam_step(self, work: Work) -> None:
        self.term_norms(work)
        self.balance(work)
        self.mtadam_update(work)

    def term_gram(self, work: Work) -> None:
        grads = list(zip(*work.grads, strict=True))
        work.table.gram.copy_(reference.term_gram(grads, like=work.table.norms))

    def combined_adam(self, work: Work) -> None:
        table = work.table
        table.steps += torch.tensor(work.reached, device=table.device)
        for row in compress(range(len(table.params)), work.reached):
            combined = reference.combined_adam(
                table.dense[row].detach(),
                [term[row] for term in work.grads],
                table.scales[row],
                part(table.states[row]["exp_avg"]),
                part(table.states[row]["exp_avg_sq"]),
                table.max_exp_avg_sqs[0][row],
                table.steps[row],
                **adam_arguments(work, row),
            )
            leave_combined(work, row, combined)


def adam_arguments(work: Work, row: int) -> dict[str, Any]:
    """The hyper-parameters of a row, as the updates of ``mtadam_fused.reference`` take them."""
    group = work.groups[work.table.groups[row]]
    return {
        "lr": group.lr.reshape(()) if isinstance(group.lr, Tensor) else group.lr,
        "beta1": group.betas[0],
        "beta2": group.betas[1],
        "eps": group.eps,
        "weight_decay": group.weight_decay,
        "maximize": group.maximize,
        "decoupled_weight_decay": group.decoupled_weight_decay,
    }


def leave_combined(work: Work, row: int, combined: Tensor) -> None:
    """Puts a row's combined gradient where it is wanted."""
    if work.combined is not None and (out := work.combined[row]) is not None:
        out.copy_(combined)
