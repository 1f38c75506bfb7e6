"""The backends: the same kernels, under the same names, in each; one is chosen per device."""

from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .registry import BACKENDS, Backend, Status, select_backend, statuses
from .triton import TritonBackend

__all__ = ["BACKENDS", "Backend", "CpuBackend", "CudaBackend", "ReferenceBackend", "Status", "TritonBackend"]
__all__ += ["select_backend", "statuses"]
