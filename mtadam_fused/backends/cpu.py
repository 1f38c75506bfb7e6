"""The native CPU kernels."""

import torch

from ..table import Work
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

    def serves(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def term_norms(self, work: Work) -> None:
        native.module.term_norms(*packed(work))

    def balance(self, work: Work) -> None:
        native.module.balance(*packed(work))

    def mtadam_update(self, work: Work) -> None:
        native.module.mtadam_update(*packed(work))

    def mtadam_step(self, work: Work) -> None:
        native.module.mtadam_step(*packed(work))

    def term_gram(self, work: Work) -> None:
        native.module.term_gram(*packed(work))

    def combined_adam(self, work: Work) -> None:
        native.module.combined_adam(*packed(work))
