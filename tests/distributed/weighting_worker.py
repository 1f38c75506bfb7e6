"""One of two processes that train with weightings: ``weighting_worker.py PLACE RANK INIT_METHOD``.

PLACE says whether the weightings are "inside" or "outside" of what DistributedDataParallel wraps. Each process has
losses of its own. Prints what the weightings have come to.
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtadam_fused.weighting import InitialLoss, ReLoBRaLo, Uncertainty


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.uncertainty = Uncertainty(["a", "b"])
        self.initial = InitialLoss()
        self.relobralo = ReLoBRaLo(alpha=0.5, rho=0.5)

    def forward(self, x: Tensor) -> Tensor:
        losses = dict(zip("ab", (self.scale * x).square(), strict=True))
        return self.uncertainty(losses) + self.initial(losses) + self.relobralo(losses)


def main(place: str, rank: int, init_method: str) -> None:
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=2)
    model = Wrapped()
    network = nn.parallel.DistributedDataParallel(model) if place == "inside" else model
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.tensor([1.0, 2.0]) * (1 + rank)).backward()
        optimizer.step()
    network(torch.ones(2))  # synchronizes the buffers
    found = [model.uncertainty.p, model.initial.sums, model.initial.counts]
    found += [model.relobralo.weights, model.relobralo.random.seed[None]]
    print(json.dumps([values.tolist() for values in found]), flush=True)
    dist.barrier()
    os._exit(0)  # without the end of gloo's threads, which now and then aborts a process


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
