"""The native CPU kernels."""

import torch

from ..tables.step_args import StepArgs
from . import native
from .native import packed


def status() -> tuple[bool, str]:
    """Whether the kernels can be used here, and their particulars or why not."""
    module = native.module
    if module is None:
        return False, native.why_missing()
    return True, f"{module.instruction_set()} kernels on {module.threading()} threads, compiled by {module.compiler}"


class CpuBackend:
    """See :class:`mtadam_fused.backends.Backend`."""

    name = "cpu"

    def supports(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def term_norms(self, args: StepArgs) -> None:
        native.module.term_norms(*packed(args))

    def balance(self, args: StepArgs) -> None:
        native.module.balance(*packed(args))

    def mtadam_update(self, args: StepArgs) -> None:
        native.module.mtadam_update(*packed(args))

    def mtadam_step(self, args: StepArgs) -> None:
        native.module.mtadam_step(*packed(args))

    def term_gram(self, args: StepArgs) -> None:
        native.module.term_gram(*packed(args))

    def combined_adam(self, args: StepArgs) -> None:
        native.module.combined_adam(*packed(args))
