"""Compare the steps that processes make together with the float64 oracle's steps on the whole batch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from oracles import numpy_oracle
from oracles.tolerances import check_params

Steps = list[list[Tensor]]  # the parameters after each


def term_gradients(losses: Mapping[str, Tensor], params: Iterable[Tensor]) -> list[list[Tensor | None]]:
    """Return the gradients, [K][parameters], None where a loss does not reach a parameter."""
    known = list(params)
    return [list(torch.autograd.grad(loss, known, retain_graph=True, allow_unused=True)) for loss in losses.values()]


def check_steps(
    steps: Steps, network: nn.Module, losses: Callable[[int], Mapping[str, Tensor]], **options: Any
) -> list[numpy_oracle.Parameter]:
    """Compare the parameters after each step with the oracle's, which become those of ``network``.

    Args:
        losses: of ``network`` at each step, on the whole batch.
        options: hyper-parameters.

    Returns:
        The oracle's parameters and state after the last step.

    Raises:
        TooFar: they differ.
    """
    params = list(network.parameters())
    states = [numpy_oracle.Parameter(p.detach().numpy()) for p in params]
    weights = dict(enumerate(options.pop("term_weights", {}).values()))
    names = list(losses(0))
    if options.get("anchor") in names:
        options["anchor"] = names.index(options["anchor"])
    for t, found in enumerate(steps):
        grads = term_gradients(losses(t), params)
        for i, (p, state) in enumerate(zip(params, states, strict=True)):
            before = p.detach().clone()
            present = {k: g.numpy() for k, row in enumerate(grads) if (g := row[i]) is not None}
            numpy_oracle.step(state, present, **options, weights=weights)
            check_params(found[i], state.value, before)
            p.data = torch.from_numpy(state.value).clone()
    return states
