"""The published MTAdam, written anew as the loop that it is: a second oracle, and the slow peer of the benchmarks.

Term by term and parameter by parameter, with one first moment per term, a host decision on every norm, and the step
made after the last term. What the published code gets wrong off this path is left out.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class PublishedMTAdam:
    """The published loop over given gradients.

    Args:
        groups: parameter groups; each has ``params`` and can override the other arguments.
        terms: the number of loss terms.
    """

    def __init__(
        self,
        groups: Sequence[dict],
        terms: int,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        term_weights: Sequence[float] | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        self.param_groups = [{**defaults, **group} for group in groups]
        self.ranks = term_weights or [1.0] * terms
        self.terms = terms
        self.state: dict[Tensor, dict] = {}

    @torch.no_grad()
    def step(self, grads: Sequence[Sequence[Tensor]]) -> None:
        """Make one step; ``grads[k]`` are term k's gradients, in the order of the groups' parameters."""
        for k in range(self.terms):
            remaining = iter(grads[k])
            for group in self.param_groups:
                for p in group["params"]:
                    self._add_term(group, p, k, next(remaining))
        for group in self.param_groups:
            for p in group["params"]:
                self._move(group, p)

    def _add_term(self, group: dict, p: Tensor, k: int, grad: Tensor) -> None:
        state = self.state.setdefault(p, {"step": 1, "norms": [torch.ones(()) for _ in range(self.terms)]})
        beta1, beta2, beta3 = group["betas"]
        norms = state["norms"]
        norm = torch.norm(grad)
        norms[k] = norm if state["step"] == 1 else norms[k] * beta3 + (1 - beta3) * norm
        if norms[k] > 1e-10:
            anchor = next(norm for norm in norms if norm > 1e-10)
            grad = self.ranks[k] * anchor * grad / norms[k]
        if group["weight_decay"] != 0:
            grad = grad.add(p, alpha=group["weight_decay"])
        for name in (f"exp_avg{k}", f"exp_avg_sq{k}", f"max_exp_avg_sq{k}"):
            state.setdefault(name, torch.zeros_like(p))
        state[f"exp_avg{k}"].mul_(beta1).add_(grad, alpha=1 - beta1)
        square = state[f"exp_avg_sq{k}"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["amsgrad"]:
            square = torch.maximum(state[f"max_exp_avg_sq{k}"], square, out=state[f"max_exp_avg_sq{k}"])
        state[f"denom{k}"] = (square.sqrt() / math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])

    def _move(self, group: dict, p: Tensor) -> None:
        state = self.state[p]
        largest = state["denom0"]
        for k in range(1, self.terms):
            largest = torch.max(largest, state[f"denom{k}"])
        step_size = group["lr"] / (1 - group["betas"][0] ** state["step"])
        total = 0
        for k in range(self.terms):
            total = total + -step_size * (state[f"exp_avg{k}"] / largest)
        p.add_(total)
        state["step"] += 1
