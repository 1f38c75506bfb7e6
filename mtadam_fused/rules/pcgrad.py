"""PCGrad."""

from array import array
from collections.abc import Iterable, Mapping
from operator import index
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hyperparameters import TermWeights
from . import kernels
from .rule import Rule, check_gram

REDUCTIONS = ("sum", "mean")


class PCGrad(Rule):
    """Remove from each term's gradient what conflicts with another term's: PCGrad (Yu et al., arXiv 2001.06782).

    Term by term, and for the other terms in random order: where the gradient so far has a negative dot product with the
    other's original gradient, its projection on that is subtracted. The results are added up. All of it is done on
    coefficients: what is projected stays a linear combination of the gradients.

    Args:
        reduction: "sum" of the projected gradients, or "mean", over the terms whose gradient is not zero.
        seed: of the random orders, below 2**62; default one that torch's generator draws.
        preference: what each projected gradient is multiplied by.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: no such ``reduction``, a ``seed`` out of its range, or as in :class:`Rule`.
    """

    shown: ClassVar[tuple[str, ...]] = ("reduction",)

    def __init__(
        self,
        reduction: str = "sum",
        seed: int | None = None,
        *,
        preference: TermWeights = None,
        parameters: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(preference=preference, parameters=parameters)
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(REDUCTIONS)}")
        self.reduction = reduction
        if seed is not None and (not hasattr(seed, "__index__") or not 0 <= index(seed) < 2**62):
            raise ValueError(f"seed is {seed!r}; it must be a whole number of at least 0 and below 2**62")
        self.seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else index(seed)
        self._step = torch.zeros((), dtype=torch.int64, device="cpu")

    def orders(self, terms: int) -> Tensor:
        """Return ``[K, K]``: for each of K terms, the order in which it meets the terms at the next step.

        Sorts numbers that the seed, the step and the pair alone decide: the same on every device, and others at every
        replay of a CUDA graph.
        """
        pairs = torch.arange(terms * terms, device=self._step.device).view(terms, terms)
        return splitmix64(splitmix64(self._step + self.seed) + pairs).argsort(dim=1)

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        check_gram(gram)
        self._step = self._step.to(gram.device, torch.int64)
        kernel = kernels.kernel_for("pcgrad", gram)
        if kernel is None:
            return self._in_torch(gram)
        gram = gram.contiguous()
        weights = gram.new_empty(len(gram))
        preference = 0 if self.preference is None else self.preference_like(weights).data_ptr()
        options = [len(gram), self.seed, self.reduction == "mean"]
        kernel(array("q", [*options, gram.data_ptr(), preference, self._step.data_ptr(), weights.data_ptr()]))
        return weights

    def _in_torch(self, gram: Tensor) -> Tensor:
        orders = self.orders(len(gram))
        self._step += 1
        squares = gram.diagonal()
        numbers = torch.arange(len(gram), device=gram.device)
        can_conflict = (orders != numbers[:, None]) & (squares > 0)[orders]
        met_squares = torch.where(can_conflict, squares[orders], torch.inf)
        zero = torch.zeros_like(squares)
        coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # row k: of the gradient of term k
        for other, square in zip(orders.unbind(dim=1), met_squares.unbind(dim=1), strict=True):  # [K] whom each meets
            dots = (coefficients * gram.T[other]).sum(dim=1)
            shares = torch.fmin(dots / square, zero)  # 0 for NaN
            coefficients = coefficients - (other[:, None] == numbers) * shares[:, None]
        weights = self.preference_like(squares) @ coefficients
        return weights if self.reduction == "sum" else weights / (squares > 0).sum().clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seed, self._step = state["seed"], state["step"].clone()


def splitmix64(x: Tensor) -> Tensor:
    """Hash 64-bit integers: splitmix64 (Steele, Lea and Flood, 2014), which wraps around."""
    x = x + (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ (x >> 30 & 2**34 - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ (x >> 27 & 2**37 - 1)) * (0x94D049BB133111EB - 2**64)
    return x ^ (x >> 31 & 2**33 - 1)
