"""The loops that are judged: where they are, what a turn loads, and how many loads must be in flight.

With four terms that all reach the parameter, without AMSGrad, of aligned tensors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

ARCHITECTURES = (80, 90, 100)

# The types of parameters. NARROW are those of 16 bits, WIDE the same with gradients of float32.
FLOAT32, NARROW, WIDE, FLOAT64 = "float32", "16-bit", "16-bit, float32 gradients", "float64"

# The loads pending that each loop must have on average, for each architecture. What is low here is to be mended: raise
# it then.
Least = Mapping[str, tuple[float, float, float]]
FLOATS = (FLOAT32, NARROW, WIDE)
LEAST_CUDA: dict[str, Least] = {
    "term_norms": dict.fromkeys((FLOAT32, NARROW, FLOAT64), (4.0, 4.0, 4.0)),
    "term_gram, one tile": dict.fromkeys((FLOAT32, NARROW, FLOAT64), (4.0, 4.0, 4.0)),
    "term_gram, two tiles": dict.fromkeys((FLOAT32, NARROW, FLOAT64), (8.0, 8.0, 8.0)),
    "mtadam_update": dict.fromkeys((*FLOATS, FLOAT64), (5.0, 5.0, 5.0)),
    "combined_adam": dict.fromkeys(FLOATS, (2.3, 7.0, 7.0)) | {FLOAT64: (2.3, 3.5, 3.5)},
    "mtadam_step, norms": dict.fromkeys((FLOAT32, NARROW, FLOAT64), (4.0, 4.0, 4.0)),
    "mtadam_step, update": dict.fromkeys(FLOATS, (5.0, 5.0, 5.0)) | {FLOAT64: (3.3, 3.3, 5.0)},
    "mtadam_step, shared moment": dict.fromkeys(FLOATS, (2.3, 7.0, 7.0)) | {FLOAT64: (2.3, 3.5, 3.5)},
}
LEAST_TRITON: dict[str, Least] = {
    "term_norms": {FLOAT32: (4.0, 4.0, 4.0), NARROW: (1.0, 1.0, 2.0), WIDE: (2.0, 2.0, 2.0)},
    "term_gram": dict.fromkeys((FLOAT32, NARROW), (8.0, 8.0, 8.0)),
    "mtadam_update": dict.fromkeys(FLOATS, (2.5, 2.5, 2.5)),
    "combined_adam": dict.fromkeys((FLOAT32, NARROW), (3.5, 3.5, 3.5)) | {WIDE: (2.3, 2.3, 3.5)},
}


@dataclass(frozen=True, eq=False)
class HotLoop:
    """A loop of a kernel for parameters of one type."""

    kernel: str
    params: str
    symbol: str  # a pattern of the function's name
    loads: Mapping[str, int]  # in a turn: opcodes, with the width that they should have, and how many
    least: tuple[float, float, float]  # loads pending, by architecture
    unpacks: bool | None = None  # whether it takes 16-bit values apart, where other loops load the same

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.params}"

    def is_in(self, function: str) -> bool:
        """Return whether the loop is in the function of this name."""
        return re.search(self.symbol, function) is not None


# -- CUDA --------------------------------------------------------------------------------------------------------------


def first(count: int, width: int = 16) -> dict[str, int]:
    """Return loads of gradients that are read again, through the read-only cache."""
    return {f"LDG.E.{8 * width}.CONSTANT": count}


def last(count: int, width: int = 16) -> dict[str, int]:
    """Return loads of what the caches need not keep."""
    return {f"LDG.E.EF.{8 * width}": count}


def cuda(kernel: str, function: str, loads: Mapping[str, Mapping[str, int]], unpacks: bool = False) -> list[HotLoop]:
    """Return the loops of a kernel for each type of parameters.

    Args:
        kernel: what the tables call it.
        function: a pattern of its name, with ``{}`` where the type of its argument is.
        loads: of each type.
        unpacks: whether loops of 16-bit values load as the others do, and only differ in what they do with them.
    """
    found = []
    for params, of_type in loads.items():
        symbol = function.format("KernelArgsId" if params == FLOAT64 else "KernelArgsIf")
        unpacks_these = params == NARROW if unpacks else None
        found.append(HotLoop(kernel, params, symbol, of_type, LEAST_CUDA[kernel][params], unpacks_these))
    return found


ONE_TILE = dict.fromkeys((FLOAT32, NARROW, FLOAT64), first(4))
TWO_TILES = dict.fromkeys((FLOAT32, NARROW, FLOAT64), first(8))
# Of the parameter, the first moment, and four gradients with four second moments, or one. What has 16 bits takes 8
# bytes where the moments take 16.
PER_TERM = {FLOAT32: last(10), NARROW: last(5) | last(5, 8), WIDE: last(9) | last(1, 8), FLOAT64: last(10)}
SHARED = {FLOAT32: last(7), NARROW: last(2) | last(5, 8), WIDE: last(6) | last(1, 8), FLOAT64: last(7)}
CUDA = [
    *cuda("term_norms", "term_norms_kernel.*{}", ONE_TILE, unpacks=True),
    *cuda("term_gram, one tile", "tile_gram_kernel.*{}", ONE_TILE, unpacks=True),
    *cuda("term_gram, two tiles", "term_gram_kernel.*{}", TWO_TILES, unpacks=True),
    *cuda("mtadam_update", "mtadam_update_kernel.*{}", PER_TERM),
    *cuda("combined_adam", "combined_adam_kernel.*{}", SHARED),
    *cuda("mtadam_step, norms", "mtadam_step_kernel.*{}.*ELb0E", ONE_TILE, unpacks=True),
    *cuda("mtadam_step, update", "mtadam_step_kernel.*{}.*ELb0E", PER_TERM),
    *cuda("mtadam_step, shared moment", "mtadam_step_kernel.*{}.*ELb1E", SHARED),
]

# -- Triton ------------------------------------------------------------------------------------------------------------


def plain(count: int, width: int = 16) -> dict[str, int]:
    """Return loads without a hint."""
    return {f"LDG.E.{8 * width}": count}


def triton(kernel: str, loads: Mapping[str, Mapping[str, int]]) -> list[HotLoop]:
    """Return the loops of a kernel for each type of parameters. Its functions are named ``kernel:type``."""
    types = {FLOAT32: "fp32", NARROW: "bf16", WIDE: "bf16"}
    return [
        HotLoop(kernel, params, f"^{kernel}:{types[params]}$", of_type, LEAST_TRITON[kernel][params])
        for params, of_type in loads.items()
    ]


TRITON = [
    *triton("term_norms", {FLOAT32: plain(4), NARROW: plain(2), WIDE: plain(4)}),
    *triton("term_gram", {FLOAT32: {"LDG.E": 4}, NARROW: {"LDG.E.U16": 4}}),  # one element at a time
    *triton("mtadam_update", {FLOAT32: plain(10), NARROW: plain(5) | plain(5, 8), WIDE: plain(9) | plain(1, 8)}),
    *triton("combined_adam", {FLOAT32: plain(7), NARROW: plain(2) | plain(5, 8), WIDE: plain(6) | plain(1, 8)}),
]
