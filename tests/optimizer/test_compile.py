"""Training functions through torch.compile: it leaves the optimizer's own code alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._functorch import config as functorch_config

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.rules import PCGrad
from mtadam_fused.weighting import RuleWeighting
from oracles.tolerances import same

MAKERS: dict[str, Callable[..., Any]] = {
    "MTAdam": MTAdam,
    "CombinedAdam": lambda params, **options: CombinedAdam(params, PCGrad(seed=0), **options),
}


def with_backward(optimizer: Any, losses: dict[str, Tensor]) -> None:
    optimizer.backward(losses)


def with_terms(optimizer: Any, losses: dict[str, Tensor]) -> None:
    for name, loss in losses.items():
        with optimizer.term(name, loss):
            loss.backward(retain_graph=True)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("take", "graphs"), [(with_backward, 1), (with_terms, 4)])  # 1 too from torch 2.13 on
def test_a_compiled_training_function(take: Callable[..., None], graphs: int, name: str, backend: str) -> None:
    counter = CompileCounter()

    def run(compiled: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        optimizer = MAKERS[name](model.parameters(), lr=0.1, backend=backend)

        def train(x: Tensor) -> None:
            optimizer.zero_grad()
            out = model(x)
            take(optimizer, {"a": out.square().mean(), "b": out.abs().mean()})
            optimizer.step()

        function = torch.compile(train, backend=counter) if compiled else train
        frames = []
        for t in range(6):
            optimizer.param_groups[0]["lr"] = 0.1 / (t + 1)
            function(torch.randn(5, 3))
            frames.append(counter.frame_count)
        assert frames[2:] == frames[2:3] * 4  # a learning rate is not compiled in
        return [p.detach() for p in model.parameters()]

    torch.compiler.reset()
    eager = run(compiled=False)
    assert not counter.frame_count
    assert same(run(compiled=True), eager)
    assert 1 <= counter.op_count <= 7  # the network's and the losses'
    assert counter.frame_count <= graphs


@pytest.mark.parametrize("name", [*MAKERS, "BalancedAdam"])
def test_an_optimizer_made_inside_a_compiled_function(name: str, backend: str) -> None:
    make = BalancedAdam if name == "BalancedAdam" else MAKERS[name]

    def train() -> list[Tensor]:
        p = nn.Parameter(torch.arange(1.0, 4.0))
        optimizer = make([p], lr=0.1, backend=backend, terms=("a", "b"))
        for _ in range(2):
            optimizer.backward({"a": p.square().sum(), "b": p.sin().sum()})
            optimizer.step()
        return [p.detach()]

    torch.compiler.reset()
    assert same(torch.compile(train, backend="eager")(), train())


def losses_of(model: Any, *names: str) -> dict[str, Tensor]:
    out = model(torch.randn(5, 3))
    found = {"a": out.square().mean(), "b": out.abs().mean()}
    return {name: found[name] for name in names}


@pytest.mark.parametrize("donated", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_a_model_compiled_for_one_loss_says_what_to_do(name: str, donated: bool) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.compiler.reset()
    with functorch_config.patch(donated_buffer=donated):
        model, optimizer = torch.compile(network, backend="aot_eager"), MAKERS[name](network.parameters())
        optimizer.backward(losses_of(model, "a"))
        optimizer.step()
        losses = losses_of(model, "a", "b")
        if donated:
            with pytest.raises(RuntimeError, match=r"Give all terms from the first step on, or set .*donated_buffer"):
                optimizer.backward(losses)
            assert all(p.grad is None for p in network.parameters())
        else:
            optimizer.backward(losses)
            optimizer.step()


def test_a_rule_weighting_says_so_too() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.compiler.reset()
    model = torch.compile(network, backend="aot_eager")
    losses_of(model, "a")["a"].backward()
    weighting = RuleWeighting(PCGrad(), network[2].parameters())
    with pytest.raises(RuntimeError, match="Give all terms from the first step on"):
        weighting(losses_of(model, "a", "b"))


def test_other_errors_of_autograd_stay() -> None:
    network = nn.Linear(3, 2)
    losses = losses_of(network, "a")
    losses["a"].backward()
    network.zero_grad()
    with pytest.raises(RuntimeError, match="second time"):
        MTAdam(network.parameters()).backward(losses)
