"""Steps that a GradScaler makes, on small sizes of every kind of optimizer and backend."""

import copy
from typing import Any

import torch
from torch import Tensor

from mtadam_fused.backends import Backend
from oracles.tolerances import same
from tests.support.small_problem import Training, start_training

SCALE = 1024.0  # a power of two: scaling and unscaling round nothing


def values(training: Training) -> list[Tensor]:
    """Return copies of the parameters and of all tensors of the optimizer's state."""
    state = [value for of_param in training.optimizer.state.values() for value in of_param.values()]
    return [tensor.detach().clone() for tensor in [*training.params, *state] if isinstance(tensor, Tensor)]


def rule_state(training: Training) -> Any:
    return copy.deepcopy(training.optimizer.state_dict()["param_groups"][0].get("rule"))


def step_scaled(training: Training, scaler: torch.amp.GradScaler, bad: float = 0.0) -> None:
    """Step on scaled gradients and losses, of which one element has ``bad`` added."""
    scale, optimizer = scaler.get_scale(), training.optimizer
    for k, (grads, loss) in enumerate(zip(training.grads, training.losses, strict=True)):
        with optimizer.term(k, loss * scale):
            for p, g in zip(training.params, grads, strict=True):
                p.grad = g * scale
    waiting = [tensor.grad for group in optimizer.scaled.param_groups for tensor in group["params"]]
    waiting[0].view(-1)[0] += bad
    scaler.step(optimizer.scaled)
    scaler.update()


def check_scaled_steps(name: str, backend: str | Backend, device: str = "cpu", **problem: Any) -> None:
    """Check that scaled steps are the plain ones to the bit, and that one with an infinity changes nothing."""

    def scaler() -> torch.amp.GradScaler:
        found = torch.amp.GradScaler(device, init_scale=SCALE, growth_interval=1000)
        found.scale(torch.ones((), device=device))  # which makes the scale's tensor
        return found

    expected = start_training(name, device, backend, **problem)
    training = start_training(name, device, backend, **problem)
    before, kept = values(training), rule_state(training)
    step_scaled(training, scaler(), bad=float("inf"))
    assert same(values(training), before)
    torch.testing.assert_close(rule_state(training), kept, rtol=0, atol=0, equal_nan=True)
    training.optimizer.zero_grad()  # of what a step that waited has left
    for _ in range(2):
        expected.step()
        step_scaled(training, scaler())
    assert same(values(training), values(expected))
    step_scaled(expected, torch.amp.GradScaler(device, enabled=False))
    assert not same(values(training), values(expected))
