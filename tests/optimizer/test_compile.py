"""Training functions through torch.compile: it leaves the optimizer's own code alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.rules import PCGrad
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
