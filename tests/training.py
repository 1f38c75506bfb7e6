"""Every optimizer on the same small problem, for tests of how a step runs and not of what it computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.fused_optimizer import FusedOptimizer
from mtadam_fused.rules import MGDA, FixedWeights, GradientNormalization, GradNorm, PCGrad

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float | Tensor], FusedOptimizer]] = {
    "MTAdam": lambda params, lr: MTAdam(params, lr=lr),
    "fixed": lambda params, lr: CombinedAdam(params, FixedWeights(), lr=lr),
    "normalization": lambda params, lr: CombinedAdam(params, GradientNormalization(), lr=lr),
    "MGDA": lambda params, lr: CombinedAdam(params, MGDA(), lr=lr),
    "PCGrad": lambda params, lr: CombinedAdam(params, PCGrad(seed=0), lr=lr),
    "GradNorm": lambda params, lr: CombinedAdam(params, GradNorm(), lr=lr),
}
# The others keep something from step to step on the host, or in tensors that a step replaces.
CAPTURABLE = ("MTAdam", "fixed", "normalization", "MGDA")


@dataclass
class Training:
    """Some parameters, gradients and losses of some terms, and an optimizer that has made a step."""

    params: list[nn.Parameter]
    grads: list[list[Tensor]]  # [K][parameters]
    losses: list[Tensor]
    optimizer: FusedOptimizer

    def step(self) -> None:
        for k, (of_term, loss) in enumerate(zip(self.grads, self.losses, strict=True)):
            with self.optimizer.term(k, loss):
                for p, g in zip(self.params, of_term, strict=True):
                    p.grad = g
        self.optimizer.step()


def begun(name: str, device: str, lr: float | Tensor = 0.1, terms: int = 3) -> Training:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(n, device=device)) for n in (1, 7, 4097, 100_000)]
    grads = [[10.0 ** (k % 3) * torch.randn_like(p) for p in params] for k in range(terms)]
    losses = [torch.rand((), device=device) for _ in range(terms)]
    training = Training(params, grads, losses, OPTIMIZERS[name](params, lr))
    training.step()
    return training
