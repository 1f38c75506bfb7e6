"""One small problem for every optimizer, for tests of how a step runs and not of what it computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.backends import Backend
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import MGDA, FixedWeights, GradientNormalization, GradNorm, PCGrad, Rule
from tests.support.rules import ON_GRAM

RULES: dict[str, Callable[[], Rule]] = {
    "fixed": FixedWeights,
    "normalization": GradientNormalization,
    "MGDA": MGDA,
    "PCGrad": lambda: PCGrad(seed=0),
    "GradNorm": GradNorm,
    "anchored": lambda: GradientNormalization(anchor="mean", ema=0.9, every=2),
    **ON_GRAM,
}
OPTIMIZERS = ("MTAdam", "BalancedAdam", *RULES)


@dataclass
class Training:
    """Some parameters, gradients and losses of some terms, and an optimizer that has made a step."""

    params: list[nn.Parameter]
    grads: list[list[Tensor]]  # [K][parameters]
    losses: list[Tensor]
    optimizer: TermOptimizer

    def step(self, times: float = 1.0) -> None:
        """Step on gradients ``times`` as large."""
        for k, (of_term, loss) in enumerate(zip(self.grads, self.losses, strict=True)):
            with self.optimizer.term(k, loss):
                for p, g in zip(self.params, of_term, strict=True):
                    p.grad = times * g
        self.optimizer.step()


def start_training(
    name: str,
    device: str,
    backend: str | Backend,
    lr: float | Tensor = 0.1,
    terms: int = 3,
    sizes: Sequence[int] = (1, 7, 4097, 100_000),
    dtype: torch.dtype = torch.float32,
    place: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    **options: Any,
) -> Training:
    """Return a training that has made its first step; ``place`` is applied to all parameters and gradients."""
    torch.manual_seed(0)
    values = [torch.randn(n, device=device, dtype=dtype) for n in sizes]
    params = [nn.Parameter(place(value)) for value in values]
    grads = [[place(10.0 ** (k % 3) * torch.randn_like(value)) for value in values] for k in range(terms)]
    losses = [torch.rand((), device=device) for _ in range(terms)]
    optimizer: TermOptimizer
    if name in RULES:
        optimizer = CombinedAdam(params, RULES[name](), lr=lr, backend=backend, **options)
    else:
        kind = {"MTAdam": MTAdam, "BalancedAdam": BalancedAdam}[name]
        optimizer = kind(params, lr=lr, backend=backend, **options)
    training = Training(params, grads, losses, optimizer)
    training.step()
    return training
