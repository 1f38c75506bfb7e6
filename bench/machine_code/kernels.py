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
LEAST_CUDA: dict[str, Least] = {
    "term_norms": {FLOAT32: (1.3, 1.1, 2.0), NARROW: (1.3, 1.0, 1.0), FLOAT64: (4.0, 4.0, 3.2)},
    "term_gram, one tile": {FLOAT32: (4.0, 4.0, 4.0), NARROW: (2.0, 2.0, 4.0), FLOAT64: (2.0, 4.0, 4.0)},
    "term_gram, two tiles": {FLOAT32: (8.0, 8.0, 4.0), NARROW: (1.6, 1.6, 4.0), FLOAT64: (1.0, 4.0, 4.0)},
    "mtadam_update": dict.fromkeys((FLOAT32, NARROW, WIDE, FLOAT64), (3.3, 3.3, 3.3)),
    "combined_adam": {FLOAT32: (3.5, 7.0, 7.0)} | dict.fromkeys((NARROW, WIDE, FLOAT64), (2.3, 3.5, 3.5)),
    "mtadam_step, norms": {FLOAT32: (8.0, 8.0, 4.0), NARROW: (4.0, 4.0, 4.0), FLOAT64: (8.0, 8.0, 16.0)},
    "mtadam_step, update": dict.fromkeys((FLOAT32, NARROW, WIDE, FLOAT64), (3.3, 3.3, 3.3)),
    "mtadam_step, shared moment": {FLOAT32: (3.5, 7.0, 7.0)} | dict.fromkeys((NARROW, WIDE, FLOAT64), (2.3, 3.5, 3.5)),
}
LEAST_TRITON: dict[str, Least] = {
    "term_norms": {FLOAT32: (2.0, 2.0, 2.0)} | dict.fromkeys((NARROW, WIDE), (1.0, 1.0, 1.0)),
    "term_gram": dict.fromkeys((FLOAT32, NARROW), (8.0, 8.0, 8.0)),
    "mtadam_update": dict.fromkeys((FLOAT32, NARROW, WIDE), (1.6, 1.6, 1.0)),
    "combined_adam": {FLOAT32: (1.1, 1.1, 1.4)} | dict.fromkeys((NARROW, WIDE), (1.1, 1.1, 1.1)),
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


def grads(count: int, width: int = 16) -> dict[str, int]:
    """Return loads of gradients, which go through the read-only cache."""
    return {f"LDG.E.{8 * width}.CONSTANT": count}


def state(count: int, width: int = 16) -> dict[str, int]:
    """Return loads of parameters and moments, which the caches need not keep."""
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


NORMS = {FLOAT32: grads(4), NARROW: grads(4), FLOAT64: grads(4)}
ONE_TILE = {FLOAT32: grads(4), NARROW: grads(4, 8), FLOAT64: grads(4)}
TWO_TILES = {FLOAT32: grads(8), NARROW: grads(8, 8), FLOAT64: grads(8)}
# A parameter of 16 bits has 8 bytes where its moments have 16.
PER_TERM = {
    FLOAT32: grads(4) | state(6),
    NARROW: grads(4, 8) | state(5) | state(1, 8),
    WIDE: grads(4) | state(5) | state(1, 8),
    FLOAT64: grads(4) | state(6),
}
SHARED = {
    FLOAT32: grads(4) | state(3),
    NARROW: grads(4, 8) | state(2) | state(1, 8),
    WIDE: grads(4) | state(2) | state(1, 8),
    FLOAT64: grads(4) | state(3),
}
CUDA = [
    *cuda("term_norms", "term_norms_kernel.*{}", NORMS, unpacks=True),
    *cuda("term_gram, one tile", "term_gram_kernel.*ProductsE1E.*{}", ONE_TILE),
    *cuda("term_gram, two tiles", "term_gram_kernel.*ProductsE2E.*{}", TWO_TILES),
    *cuda("mtadam_update", "mtadam_update_kernel.*{}", PER_TERM),
    *cuda("combined_adam", "combined_adam_kernel.*{}", SHARED),
    *cuda("mtadam_step, norms", "mtadam_step_kernel.*{}.*ELb0E", NORMS, unpacks=True),
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
    *triton("term_norms", {FLOAT32: plain(1), NARROW: plain(1, 8), WIDE: plain(1)}),
    *triton("term_gram", {FLOAT32: {"LDG.E": 4}, NARROW: {"LDG.E.U16": 4}}),  # one element at a time
    *triton("mtadam_update", {FLOAT32: plain(10), NARROW: plain(5) | plain(5, 8), WIDE: plain(9) | plain(1, 8)}),
    *triton("combined_adam", {FLOAT32: plain(7), NARROW: plain(2) | plain(5, 8), WIDE: plain(6) | plain(1, 8)}),
]
