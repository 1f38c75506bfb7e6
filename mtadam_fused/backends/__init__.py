"""The backends: the same kernels, under the same names, in each; one is chosen per device."""

from .cpu import CpuBackend
from .reference import ReferenceBackend
from .registry import BACKENDS, Backend, Status, choose, statuses

__all__ = ["BACKENDS", "Backend", "CpuBackend", "ReferenceBackend", "Status", "choose", "statuses"]
