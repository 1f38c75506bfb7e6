"""Which backends there are, whether each can be used here, and which one "auto" takes."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch

from ..table import Work
from . import cpu, cuda, reference, triton


class Backend(Protocol):
    """The kernels of MTAdam and CombinedAdam for some types of devices.

    Each takes a :class:`~mtadam_fused.table.Work` and changes its table in place.
    """

    name: str

    def serves(self, device: torch.device) -> bool:
        """Whether the kernels are for parameters on ``device``, be they usable here or not."""

    def term_norms(self, work: Work) -> None:
        """Stage 1: fills ``table.norms`` from the gradients."""

    def balance(self, work: Work) -> None:
        """Stage 2: from ``table.norms`` advances ``table.running`` and ``table.steps``, fills ``table.scales``."""

    def mtadam_update(self, work: Work) -> None:
        """Stage 3: advances parameters and moments, and fills ``work.combined``."""

    def mtadam_step(self, work: Work) -> None:
        """The three stages."""

    def term_gram(self, work: Work) -> None:
        """Fills ``table.gram`` from the gradients."""

    def combined_adam(self, work: Work) -> None:
        """Advances ``table.steps``, parameters and moments by the gradients times ``table.scales``; fills
        ``work.combined``."""


@dataclass(frozen=True)
class Status:
    """Whether a backend can be used on this machine, and why, in words."""

    usable: bool
    reason: str


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "cuda": cuda.CudaBackend(),
        "triton": triton.TritonBackend(),
        "cpu": cpu.CpuBackend(),
        "reference": reference.ReferenceBackend(),
    }
)
STATUS: Mapping[str, Callable[[], tuple[bool, str]]] = MappingProxyType(
    {"cuda": cuda.status, "triton": triton.status, "cpu": cpu.status, "reference": reference.status}
)
# What "auto" tries, best first. An interpreter never is the best.
AUTO = tuple(name for name in BACKENDS if not (name == "triton" and triton.INTERPRETED))


def statuses() -> dict[str, Status]:
    """Every backend's status, best first for the devices that it serves."""
    return {name: Status(*status()) for name, status in STATUS.items()}


def choose(requested: str, device: torch.device) -> Backend:
    """The backend for parameters on ``device``.

    Args:
        requested: "auto" or a backend's name.

    Raises:
        ValueError: no such backend.
        RuntimeError: a backend asked for by name that cannot serve the device here.
    """
    if requested not in ("auto", *BACKENDS):
        raise ValueError(f"backend is {requested!r}; it must be one of auto, {', '.join(BACKENDS)}")
    names = AUTO if requested == "auto" else (requested,)
    found = {name: Status(*STATUS[name]()) for name in names if BACKENDS[name].serves(device)}
    problems = [status.reason for status in found.values() if not status.usable]
    problem = "; ".join(problems) or f"it has no kernels for parameters on {device}"
    usable = next((name for name, status in found.items() if status.usable), None)
    if usable is None:
        raise RuntimeError(
            f"backend {requested!r} cannot be used: {problem}; use backend='auto' or backend='reference'"
        )
    if usable == "reference" != requested:
        warnings.warn(
            f"mtadam_fused runs its slow pure-PyTorch reference on {device}: {problem}. See `python -m mtadam_fused`; "
            "backend='reference' asks for it without this warning.",
            stacklevel=2,
        )
    return BACKENDS[usable]
