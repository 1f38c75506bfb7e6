"""Parameters, losses and gradients for random calls on an optimizer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.rules import FixedWeights, GradientNormalization, Rule
from tests.support.call_arithmetic import Grad
from tests.support.cases import lay_out

FIXED_WEIGHTS = {"a": 1.0, "b": 0.5, "c": 3.0, "d": 2.0}

Spec = tuple[tuple[int, ...], torch.dtype, str]  # shape, type and layout of a parameter


def as_array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy().copy()


class ByLoss(Rule):
    """Weight each term by its loss."""

    needs_gram = False
    needs_losses = True

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        return torch.where(losses.isnan(), 1.0, 1 / (1 + losses.square()))


class Given(torch.autograd.Function):
    """A loss of a given value with given gradients; its backward pass can raise KeyboardInterrupt."""

    @staticmethod
    def forward(ctx: Any, value: float, grads: list[Tensor], raises: bool, *params: Tensor) -> Tensor:
        ctx.grads, ctx.raises = grads, raises
        return torch.tensor(value, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        if ctx.raises:
            raise KeyboardInterrupt
        return None, None, None, *((factor * grad).to(grad.dtype) for grad in ctx.grads)


def make_params(specs: Sequence[Spec], seed: int) -> list[nn.Parameter]:
    random = np.random.default_rng(seed)
    values = [torch.from_numpy(np.asarray(random.standard_normal(shape))).to(dtype) for shape, dtype, _ in specs]
    return [nn.Parameter(lay_out(value, layout)) for value, (_, _, layout) in zip(values, specs, strict=True)]


def make_optimizer(kind: str, groups: list[dict[str, Any]], backend: str, options: dict[str, Any]) -> TermOptimizer:
    if kind == "MTAdam":
        return MTAdam(groups, backend=backend, **options)
    if kind == "BalancedAdam":
        return BalancedAdam(groups, backend=backend, **options)
    rules = {"fixed": FixedWeights(FIXED_WEIGHTS), "normalization": GradientNormalization(), "by_loss": ByLoss()}
    return CombinedAdam(groups, rules[kind], backend=backend, **options)


def draw_losses(
    params: Sequence[nn.Parameter], terms: Sequence[str], seed: int, bad: float | None
) -> dict[str, tuple[float, dict[int, Tensor]]]:
    """Draw a loss and gradients of some parameters for each term; ``bad`` stands in one place of the first's."""
    random = np.random.default_rng(seed)
    drawn = {}
    for number, term in enumerate(terms):
        grads = {}
        certain = random.integers(len(params))
        for i, p in enumerate(params):
            array = np.asarray(random.standard_normal(tuple(p.shape)) * 10.0 ** random.integers(-2, 3))
            array = np.asarray(array * (random.random() > 0.1))
            if bad is not None and number == 0 and i == certain and array.size:
                array.flat[random.integers(array.size)] = bad
            if random.random() < 0.8 or i == certain:
                grads[i] = torch.from_numpy(array).to(p.device, p.dtype)
        drawn[term] = (float(random.integers(-40, 40)) / 8, grads)
    return drawn


def to_model(grads: dict[int, Tensor]) -> dict[int, Grad]:
    return {i: Grad(array := as_array(g), np.zeros_like(array), g.dtype) for i, g in grads.items()}
