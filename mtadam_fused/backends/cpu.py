"""The native CPU kernels."""

import torch

from ..tables.step_args import StepArgs
from . import native


def status(device: torch.device | None = None) -> tuple[bool, str]:
    """Return whether the kernels can be used here, and their details or why not. ``device`` makes no difference."""
    module = native.module
    if module is None:
        return False, native.why_missing()
    return True, f"{module.instruction_set()} kernels on {module.threading()} threads, compiled by {module.compiler}"


class CpuBackend:
    """See :class:`mtadam_fused.backends.Backend`."""

    name = "cpu"
    takes_grad_scale = True

    def supports(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def term_norms(self, args: StepArgs) -> None:
        native.run("term_norms", args)

    def balance(self, args: StepArgs) -> None:
        native.run("balance", args)

    def mtadam_update(self, args: StepArgs) -> None:
        native.run("mtadam_update", args)

    def mtadam_step(self, args: StepArgs) -> None:
        native.run("mtadam_step", args)

    def term_gram(self, args: StepArgs) -> None:
        native.run("term_gram", args)

    def combined_adam(self, args: StepArgs) -> None:
        native.run("combined_adam", args)
