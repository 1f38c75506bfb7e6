"""Which backends there are, whether each can be used here, and which one "auto" takes."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch

from ..table import Work
from . import cpu, cuda, reference


class Backend(Protocol):
    """The kernels of MTAdam and CombinedAdam for one kind of device.

    Each takes a :class:`~mtadam_fused.table.Work` and changes its table in place.
    """

    name: str

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


# By name; a backend of kernels has the name of the type of device that it serves, the reference serves all.
BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {"reference": reference.ReferenceBackend(), "cpu": cpu.CpuBackend(), "cuda": cuda.CudaBackend()}
)


def statuses() -> dict[str, Status]:
    """Every backend's status, best first for the devices that it serves."""
    return {
        "cuda": Status(*cuda.status()),
        "cpu": Status(*cpu.status()),
        "reference": Status(True, "pure PyTorch, any device"),
    }


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
    if requested == "reference":
        return BACKENDS[requested]
    status = statuses().get(device.type)
    if status is None or requested not in ("auto", device.type):
        problem = f"it has no kernels for parameters on {device}"
    elif status.usable:
        return BACKENDS[device.type]
    else:
        problem = status.reason
    if requested != "auto":
        raise RuntimeError(
            f"backend {requested!r} cannot be used: {problem}; use backend='auto' or backend='reference'"
        )
    warnings.warn(
        f"mtadam_fused runs its slow pure-PyTorch reference on {device}: {problem}. See `python -m mtadam_fused`; "
        "backend='reference' asks for it without this warning.",
        stacklevel=2,
    )
    return BACKENDS["reference"]
