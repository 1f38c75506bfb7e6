"""The list of backends, their status on this machine, and the selection of one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..tables.step_args import StepArgs
from ..warn import warn_user
from . import cpu, cuda, reference, triton


@runtime_checkable
class Backend(Protocol):
    """The kernels of MTAdam and CombinedAdam for some types of devices.

    Each kernel takes a :class:`~mtadam_fused.tables.StepArgs` and changes its table in place.

    Attributes:
        name: shown by the ``repr`` of an optimizer.
        takes_grad_scale: optional; True if the kernels divide the gradients by ``args.grad_scale`` and, where
            ``args.found_inf`` is not 0, change nothing but norms and dot products. Without it both are None, and a
            GradScaler's step waits for the device.
    """

    name: str

    def supports(self, device: torch.device) -> bool:
        """Return whether the kernels are made for parameters on ``device``, usable here or not."""

    def term_norms(self, args: StepArgs) -> None:
        """Stage 1: fill ``table.norms`` from the gradients."""

    def balance(self, args: StepArgs) -> None:
        """Stage 2: from ``table.norms`` advance ``table.norm_avg`` and ``table.steps``, and fill ``table.scales``."""

    def mtadam_update(self, args: StepArgs) -> None:
        """Stage 3: advance parameters and moments, and fill ``args.combined``."""

    def mtadam_step(self, args: StepArgs) -> None:
        """Run the three stages."""

    def term_gram(self, args: StepArgs) -> None:
        """Fill ``table.gram`` from the gradients."""

    def combined_adam(self, args: StepArgs) -> None:
        """Make Adam's step on the sum of the gradients times ``table.scales``.

        Advances ``table.steps``, parameters and moments, and fills ``args.combined``.
        """


@dataclass(frozen=True)
class Status:
    """The status of a backend on this machine, and the reason."""

    usable: bool
    reason: str


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "cuda": cuda.CudaBackend(),
        "cuda-one-launch": cuda.CudaBackend(one_launch=True),
        "triton": triton.TritonBackend(),
        "cpu": cpu.CpuBackend(),
        "reference": reference.ReferenceBackend(),
    }
)
# Each says of a device, or without one of all of them together, whether it can be used, and why or why not.
STATUS: Mapping[str, Callable[[torch.device | None], tuple[bool, str]]] = MappingProxyType(
    {
        "cuda": cuda.status,
        "cuda-one-launch": cuda.status,
        "triton": triton.status,
        "cpu": cpu.status,
        "reference": reference.status,
    }
)
# What "auto" tries, best first. An interpreter never is the best, and one launch has yet to be measured on a GPU.
AUTO = tuple(name for name in BACKENDS if name != "cuda-one-launch" and not (name == "triton" and triton.INTERPRETED))


def statuses() -> dict[str, Status]:
    """Return every backend's status on this machine, best first for the devices that it supports."""
    return {name: Status(*status(None)) for name, status in STATUS.items()}


def select_backend(requested: str | Backend, device: torch.device) -> Backend:
    """Return the backend for parameters on ``device``.

    Args:
        requested: "auto", a backend's name, or a backend, which may be one of your own.

    Raises:
        ValueError: no such backend.
        TypeError: neither a name nor a backend.
        RuntimeError: a backend asked for by name or given that cannot be used for the device here.
    """
    if not isinstance(requested, str):
        return check_backend(requested, device)
    if requested not in ("auto", *BACKENDS):
        raise ValueError(f"backend is {requested!r}; it must be auto, {', '.join(BACKENDS)} or a backend object")
    names = AUTO if requested == "auto" else (requested,)
    found = {name: Status(*STATUS[name](device)) for name in names if BACKENDS[name].supports(device)}
    problems = [status.reason for status in found.values() if not status.usable]
    problem = "; ".join(problems) or f"it has no kernels for parameters on {device}"
    usable = next((name for name, status in found.items() if status.usable), None)
    if usable is None:
        raise RuntimeError(
            f"backend {requested!r} cannot be used: {problem}; use backend='auto' or backend='reference'"
        )
    if usable == "reference" != requested:
        warn_user(
            f"mtadam_fused runs its slow pure-PyTorch reference on {device}: {problem}. See `python -m mtadam_fused`; "
            "backend='reference' asks for it without this warning."
        )
    return BACKENDS[usable]


def add_backends(backends: dict[torch.device, Backend], requested: str | Backend, params: Iterable[Tensor]) -> None:
    """Select a backend for each device of ``params`` that ``backends`` lacks; all or none.

    So no step runs on another backend than the last. Errors as in :func:`select_backend`.
    """
    devices = {p.device for p in params} - backends.keys()
    backends.update({device: select_backend(requested, device) for device in devices})


def check_backend(backend: Backend, device: torch.device) -> Backend:
    """Return a backend object that a user has passed; errors as in :func:`select_backend`."""
    if not isinstance(backend, Backend):
        raise TypeError(
            f"backend is {backend!r}; it must be a name, such as 'auto', or an object with the methods of "
            "mtadam_fused.backends.Backend"
        )
    if not backend.supports(device):
        raise RuntimeError(
            f"backend {backend.name!r} has no kernels for parameters on {device}; use backend='auto' or 'reference'"
        )
    return backend
