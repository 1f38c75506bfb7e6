"""A warning when what the terms are balanced against has faded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from . import reference
from .backends.device import is_capturing
from .tables.param_table import ParamTable
from .tables.step_args import StepArgs
from .warn import warn_user

EVERY = 64  # steps between two looks; the first looks are at steps 1, 2, 4, 8, ...
FADED = 1e-3  # of the peak

WARNING = (
    f"the running norm of the anchor has fallen below {FADED:g} of its peak. All terms are scaled down with it, so the "
    "steps shrink. Use anchor='none', as mtadam_fused.BalancedAdam does, or give as anchor= a term that keeps a "
    "gradient until the end."
)


@dataclass
class Anchors:
    """The anchors' running norms of a table, as one norm over all rows."""

    peak: Tensor  # largest so far, on the table's device
    has_faded: Tensor  # bool, in host memory that the device writes; it may lag behind


class AnchorWatch:
    """Look at the anchors' running norms now and then, and warn once when they have faded.

    A look is a few small kernels. The host waits for none of them: it reads at one look what an earlier one found.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._has_warned = False
        self._anchors: WeakKeyDictionary[ParamTable, Anchors] = WeakKeyDictionary()

    def look(self, steps: Sequence[StepArgs]) -> None:
        """Look at the anchors after a step, if it is time to."""
        self._steps += 1
        is_due = self._steps % EVERY == 0 or (self._steps < EVERY and self._steps & (self._steps - 1) == 0)
        if self._has_warned or not is_due:
            return
        for args in steps:
            device = args.table.device  # of type "meta" in a dry run, with no values to look at
            if set(args.anchors) != {reference.NO_ANCHOR} and not is_capturing(device) and device.type != "meta":
                self._look_at(args)
        if any(bool(anchors.has_faded) for anchors in self._anchors.values()):
            self._has_warned = True
            warn_user(WARNING)

    @torch.inference_mode(False)  # its tensors outlive the step
    def _look_at(self, args: StepArgs) -> None:
        table = args.table
        # A fill for each run of equal codes: copying a list to the device could wait for it.
        runs = groupby(args.anchors[group] for group in table.group_indices)
        codes = torch.cat([torch.full((len(list(run)), 1), code, device=table.device) for code, run in runs])
        found = reference.anchor_of(table.norm_avg, codes).where(codes != reference.NO_ANCHOR, 0.0)
        norm = found.double().norm()
        anchors = self._anchors.get(table)
        if anchors is None:
            flag = torch.zeros((), dtype=torch.bool, device="cpu", pin_memory=table.device.type == "cuda")
            anchors = self._anchors[table] = Anchors(norm, flag)
        anchors.peak = torch.maximum(anchors.peak, norm)
        anchors.has_faded.copy_(norm < FADED * anchors.peak, non_blocking=True)
