"""The Triton kernels: those of csrc/cuda, under the same names. ``mtadam_fused/backends/triton.py`` launches them."""

from .balance import balance
from .memory import CHUNK, WARPS
from .mtadam_update import mtadam_update
from .term_norms import term_norms

__all__ = ["CHUNK", "WARPS", "balance", "mtadam_update", "term_norms"]
