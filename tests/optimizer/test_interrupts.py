"""Ctrl-C at any point: a step is made or not made, no gradient counts twice, and zero_grad() opens everything again."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.backends import BACKENDS
from mtadam_fused.gradients.collector import GradientCollector
from mtadam_fused.tables import checkpoint
from oracles.tolerances import same
from tests.support.small_problem import OPTIMIZERS, start_training


class Interrupting:
    """A backend that interrupts before or after its kernels."""

    name = "interrupting"
    kernels = ("term_norms", "balance", "mtadam_update", "mtadam_step", "term_gram", "combined_adam")

    def __init__(self) -> None:
        self._backend = BACKENDS["reference"]
        self.when = "never"

    def supports(self, device: torch.device) -> bool:
        return True

    def __getattr__(self, kernel: str) -> Any:
        if kernel not in self.kernels:
            raise AttributeError(kernel)

        def run(args: Any) -> None:
            if self.when == "before" and kernel in ("mtadam_step", "combined_adam"):
                raise KeyboardInterrupt
            getattr(self._backend, kernel)(args)
            if self.when == "after" and kernel in ("mtadam_step", "combined_adam"):
                raise KeyboardInterrupt

        return run


def has_state(optimizer: Any) -> bool:
    """Return whether the optimizer's rule keeps anything from step to step."""
    return bool(optimizer.rule.state_dict()) if isinstance(optimizer, CombinedAdam) else False


@contextmanager
def interrupted() -> Iterator[None]:
    with pytest.raises(KeyboardInterrupt):
        yield


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_step_is_made_once_or_not_at_all(name: str, when: str) -> None:
    backend = Interrupting()
    training = start_training(name, "cpu", backend, sizes=(3, 5))
    whole = start_training(name, "cpu", "reference", sizes=(3, 5))
    before = [p.detach().clone() for p in training.params]
    backend.when = when
    with interrupted():
        training.step()
    backend.when = "never"
    if when == "after":
        whole.step()
    assert same(training.params, whole.params)
    assert same(training.params, before) == (when == "before")
    training.optimizer.step()  # nothing waits
    assert same(training.params, whole.params)
    for each in (training, whole):
        each.step()
    if when == "after" or not has_state(training.optimizer):  # a rule was asked before the interrupt
        assert same(training.params, whole.params)


@pytest.mark.parametrize("when", ["before", "after"])
def test_graphs_from_before_an_interrupted_step_are_refused(when: str) -> None:
    """The parameters may have changed, so a backward pass through their old values would be wrong."""
    p, backend = nn.Parameter(torch.ones(3)), Interrupting()
    optimizer = MTAdam([p], backend=backend)
    old = p.square().sum()
    optimizer.backward({"a": p.square().sum()})
    backend.when = when
    with interrupted():
        optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        old.backward()


def test_a_term_block_that_was_interrupted_at_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p])
    abandoned = optimizer.term("a")
    open_term = GradientCollector.open_term

    @contextmanager
    def interrupt(self: GradientCollector, term: Any) -> Iterator[None]:
        self._open_term = (term,)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(GradientCollector, "open_term", interrupt)
    with interrupted(), abandoned:
        pass
    monkeypatch.setattr(GradientCollector, "open_term", open_term)
    with pytest.raises(RuntimeError, match=r"term 'a' is being taken; .* zero_grad"):
        optimizer.backward({"a": p.sum()})
    optimizer.zero_grad()
    optimizer.backward({"a": p.sum()})
    optimizer.step()
    assert not p.eq(1).any()


def test_a_late_end_of_an_abandoned_block_leaves_the_open_one_alone() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p])
    abandoned = optimizer.term("a")
    abandoned.__enter__()
    optimizer.zero_grad()
    with optimizer.term("b"):
        assert not abandoned.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        with pytest.raises(RuntimeError, match="term 'b' is being taken"):
            optimizer.backward({"c": p.sum()})


def test_losses_of_a_step_without_gradients_are_dropped() -> None:
    p, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))
    optimizer = MTAdam([p])
    optimizer.backward({"a": other.sum()})  # reaches no parameter of the optimizer
    assert optimizer._collector.losses
    optimizer.step()
    assert not optimizer._collector.losses


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_loading_that_fails_midway_changes_nothing(error: type, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training = start_training("MTAdam", "cpu", backend, sizes=(3, 5))
    other = start_training("MTAdam", "cpu", backend, sizes=(3, 5))
    for _ in range(3):
        other.step()
    before = copy.deepcopy(training.optimizer.state_dict())
    restore, calls = checkpoint.restore, []

    def fail_at_the_second(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise error
        return restore(*args)

    monkeypatch.setattr(checkpoint, "restore", fail_at_the_second)
    with pytest.raises(error):
        training.optimizer.load_state_dict(other.optimizer.state_dict())
    monkeypatch.setattr(checkpoint, "restore", restore)
    after = training.optimizer.state_dict()
    torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0, equal_nan=True)
    assert after["param_groups"] == before["param_groups"]
    training.step()
    training.optimizer.load_state_dict(other.optimizer.state_dict())
    steps: list[Tensor] = [state["step"] for state in training.optimizer.state.values()]
    assert [step.item() for step in steps] == [4.0, 4.0]


def test_parameters_with_gaps_are_stepped_with_their_state() -> None:
    """An interrupt just after the kernels, which step a dense copy."""
    backend = Interrupting()
    p, q = (nn.Parameter(torch.arange(8.0)[::2]) for _ in range(2))
    optimizer, other = MTAdam([p], backend=backend), MTAdam([q], backend="reference")
    optimizer.backward({"a": p.square().sum()})
    other.backward({"a": q.square().sum()})
    backend.when = "after"
    with interrupted():
        optimizer.step()
    other.step()
    assert torch.equal(p, q)
    assert not p.eq(torch.arange(8.0)[::2])[1:].any()  # the first is 0, and so is its gradient
    assert torch.equal(optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"])
