"""PCGrad."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .rule import Rule

REDUCTIONS = ("sum", "mean")


class PCGrad(Rule):
    """PCGrad (Yu et al., arXiv 2001.06782): takes out of each term's gradient what conflicts with another term's.

    Term by term, and for the other terms in random order: where the gradient so far has a negative dot product with the
    other's original gradient, its projection on that is subtracted. The results are added up. All of it is done on
    coefficients: what is projected stays a linear combination of the gradients.

    Args:
        reduction: "sum" of the projected gradients, or "mean", over the terms whose gradient is not zero.
        seed: of the random orders; default one that torch's generator draws.

    Raises:
        ValueError: no such ``reduction``.
    """

    def __init__(self, reduction: str = "sum", seed: int | None = None) -> None:
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(REDUCTIONS)}")
        self.reduction = reduction
        self.seed = int(torch.randint(2**62, ())) if seed is None else seed
        self._step = 0

    def orders(self, terms: int) -> Tensor:
        """``[K, K]`` on the CPU: for each of K terms, the order in which it meets the terms at the next step."""
        generator = torch.Generator().manual_seed(self.seed + self._step)
        return torch.stack([torch.randperm(terms, generator=generator) for _ in range(terms)])

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        orders = self.orders(len(gram)).to(gram.device, non_blocking=True)
        self._step += 1
        squares = gram.diagonal()
        numbers = torch.arange(len(gram), device=gram.device)
        coefficients = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)  # row k: of the gradient of term k
        for other in orders.unbind(dim=1):  # [K] whom each term meets
            met = other[:, None] == numbers
            dots = (coefficients @ gram * met).sum(dim=1)
            conflict = (dots < 0) & (other != numbers) & (squares[other] > 0)
            coefficients = coefficients - met * torch.where(conflict, dots / squares[other], 0.0)[:, None]
        weights = coefficients.sum(dim=0)
        return weights if self.reduction == "sum" else weights / (squares > 0).sum().clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seed, self._step = state["seed"], state["step"]

    def __repr__(self) -> str:
        return f"PCGrad(reduction={self.reduction!r})"
