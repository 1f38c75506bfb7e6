"""The Triton kernels: those of csrc/cuda, under the same names. ``mtadam_fused/backends/triton.py`` launches them."""

from .balance import balance
from .combined_adam import begin_step, combined_adam
from .memory import WARPS
from .mtadam_update import mtadam_update
from .term_gram import fold_gram, term_gram
from .term_norms import fold_norms, term_norms

__all__ = [
    "WARPS",
    "balance",
    "begin_step",
    "combined_adam",
    "fold_gram",
    "fold_norms",
    "mtadam_update",
    "term_gram",
    "term_norms",
]
