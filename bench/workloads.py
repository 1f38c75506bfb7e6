"""What the benchmarks step: parameter shapes of named models, with gradients ready."""

import torch
from torch import Tensor, nn

# Shapes of the parameters. "mnist" is the network of the published experiment.
WORKLOADS: dict[str, list[tuple[int, ...]]] = {
    "mnist": [(500, 784), (500,), (1000, 500), (1000,), (300, 1000), (300,), (10, 300), (10,)],
    "20 layers of 1 M": [(1000, 1000)] * 20,
    "1 layer of 20 M": [(20_000_000,)],
}


def make_params(name: str) -> list[nn.Parameter]:
    """Fresh parameters of a workload, the same each time."""
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in WORKLOADS[name]]


def make_grads(params: list[nn.Parameter], terms: int) -> list[list[Tensor]]:
    """``[terms][params]`` random gradients; those of term k are 10 to the k % 4 times as large as the first's."""
    torch.manual_seed(1)
    return [[torch.randn_like(p).detach() * 10.0 ** (k % 4) for p in params] for k in range(terms)]
