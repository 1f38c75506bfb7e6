"""Every optimizer at a single term, beside the torch.optim.Adam that it then is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import FixedWeights

NORM_DECAY = 0.99  # of the running norms
KINDS = ("MTAdam", "BalancedAdam", "CombinedAdam")


class PeakNormAdam(torch.optim.Adam):
    """Adam on gradients over the decaying peak of their norm: what BalancedAdam is at a single term."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.peaks: dict[Tensor, Tensor] = {}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Divide ``p.grad`` by its peak norm, which this advances, and make the step of Adam."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    norm = p.grad.double().norm()
                    self.peaks[p] = torch.maximum(norm, NORM_DECAY * self.peaks.get(p, torch.zeros_like(norm)))
                    p.grad = p.grad / self.peaks[p] if self.peaks[p] > 0 else p.grad
        return super().step(closure)


def optimizer_class(kind: str) -> type[torch.optim.Optimizer]:
    """Return the class of one of ``KINDS``, or torch.optim.Adam."""
    return {"MTAdam": MTAdam, "BalancedAdam": BalancedAdam, "CombinedAdam": CombinedAdam}.get(kind, torch.optim.Adam)


def make(kind: str, params: Any, **options: Any) -> TermOptimizer:
    """Return an optimizer of ``kind``; ``betas`` are Adam's two."""
    beta1, beta2 = options.pop("betas", (0.9, 0.999))
    if kind == "CombinedAdam":
        return CombinedAdam(params, FixedWeights(), betas=(beta1, beta2), **options)
    return (MTAdam if kind == "MTAdam" else BalancedAdam)(params, betas=(beta1, beta2, NORM_DECAY), **options)


def make_adam(kind: str, params: Any, **options: Any) -> torch.optim.Adam:
    """Return the torch.optim.Adam that an optimizer of ``kind`` is at a single term."""
    return (PeakNormAdam if kind == "BalancedAdam" else torch.optim.Adam)(params, **options)


def step(optimizer: torch.optim.Optimizer) -> None:
    """Make a step with the gradients in ``p.grad``, which are those of the only term of ours."""
    if isinstance(optimizer, TermOptimizer):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        for p in params:
            p.grad = None
        with optimizer.term("loss"):
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
    optimizer.step()


def start(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """Return the weight and the bias of a layer, always the same."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in ((10, 5), (10,))]


def loss_of(params: Sequence[Tensor]) -> Tensor:
    """Return the loss of a layer, a quadratic of its weight and bias."""
    weight, bias = params
    return (weight.mv(torch.linspace(-1.0, 2.0, 5, dtype=weight.dtype)) + bias).square().sum()


def train(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    steps: int,
    after: Callable[[Tensor], object] = lambda loss: None,
) -> None:
    """Make steps on :func:`loss_of`, and call ``after`` with the loss after each."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        step(optimizer)
        after(loss.detach())


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Raise AssertionError unless float64 parameters are the same but for rounding."""
    torch.testing.assert_close(list(ours), list(theirs), rtol=0, atol=1e-11)
