"""Weightings inside what DistributedDataParallel wraps: two processes agree on what was learned and measured."""

import json
from pathlib import Path

import pytest

from tests.support.processes import run_all

# Each process has losses of its own; prints what the weighting inside, or outside, of DDP has come to.
TRAIN = """
import json, os, sys, torch
import torch.distributed as dist
from torch import nn
from mtadam_fused.weighting import InitialLoss, Uncertainty

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.uncertainty = Uncertainty(["a", "b"])
        self.initial = InitialLoss()

    def forward(self, x):
        losses = dict(zip("ab", (self.scale * x).square()))
        return self.uncertainty(losses) + self.initial(losses)

place, rank, meeting = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
model = Wrapped()
network = nn.parallel.DistributedDataParallel(model) if place == "inside" else model
optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
for _ in range(3):
    optimizer.zero_grad()
    network(torch.tensor([1.0, 2.0]) * (1 + rank)).backward()
    optimizer.step()
    network(torch.ones(2))  # synchronises the buffers
found = [model.uncertainty.p, model.initial.sums, model.initial.counts]
print(json.dumps([values.tolist() for values in found]), flush=True)
dist.barrier()
os._exit(0)  # without the end of gloo's threads, which now and then aborts a process
"""


def trained(folder: Path, place: str) -> list[list[list[float]]]:
    """p, and the initial losses and their counts, of both processes."""
    (folder / place).mkdir()
    outputs = run_all(2, folder / place, "-c", TRAIN, place)
    return [json.loads(output.splitlines()[-1]) for output in outputs]  # gloo of torch 2.8 prints before


def test_inside_it_processes_agree(tmp_path: Path) -> None:
    first, second = trained(tmp_path, "inside")
    assert first == second
    assert first[1:] == [[1.0, 4.0], [1, 1]]  # the first process's losses
    alone, other = trained(tmp_path, "outside")
    assert alone[0] != other[0]
    assert other[1] == [pytest.approx(4.0), pytest.approx(16.0)]
