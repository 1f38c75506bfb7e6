"""A process of test_one_pass_ddp.py: rules that look at few gradients, over several processes."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mtadam_fused import CombinedAdam
from mtadam_fused.distributed.dtensor import full_tensor
from mtadam_fused.rules import MGDA, FixedWeights, GradNorm, Rule
from mtadam_fused.weighting import RuleWeighting
from tests.support.processes import save_and_exit
from tests.support.shared_trunk import Trunk

STEPS = 4


class Recorder(Rule):
    """Keep what the rule is given."""

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.gram = gram.clone()
        return torch.ones_like(losses)


class Drawn(Rule):
    """Draw weights, others in each process."""

    def __init__(self, seed: int, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters=parameters)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        return torch.rand(len(losses), dtype=losses.dtype, generator=self._generator)


def mean_of(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {term: torch.stack([losses[term] for losses in batches]).mean() for term in batches[0]}


def train(name: str, passes: str, seeds: list[int], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Train on the mean losses of the batches of these seeds, and return the parameters."""
    trunk = Trunk()
    last = list(trunk.last.parameters())
    rules = {"fixed": FixedWeights([1.0, 0.5, 2.0]), "GradNorm": GradNorm(parameters=last)}
    rule = rules.get(name) or Drawn(seeds[0], last)
    optimizer = CombinedAdam(trunk.parameters(), rule, lr=1e-2, passes=passes, process_group=group)
    for step in range(STEPS):
        found = [trunk.losses(trunk.features(10 * step + seed)) for seed in seeds]
        optimizer.backward(mean_of(found))
        optimizer.step()
    return [p.detach() for p in trunk.parameters()]


def train_on_features(seeds: list[int], group: dist.ProcessGroup | None, *, sharded: bool) -> list[Tensor]:
    """Train with a rule that looks at the features, on a trunk that FSDP2 may have sharded; return the parameters."""
    trunk = Trunk()
    for module in (trunk.first, trunk.last, *trunk.heads.values()) if sharded else ():
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    weighting = RuleWeighting(MGDA("l2"), process_group=group)
    optimizer = torch.optim.Adam(trunk.parameters(), lr=1e-2)
    for step in range(STEPS):
        read = [trunk.features(10 * step + seed) for seed in seeds]
        optimizer.zero_grad()
        weighting(mean_of([trunk.losses(z) for z in read]), features=read).backward()
        optimizer.step()
    return [full_tensor(p.detach()) for p in trunk.parameters()]


def gram_seen(seeds: list[int], group: dist.ProcessGroup | None, *, features: bool) -> Tensor:
    """Return the dot products that a rule is given of the mean losses of the batches of these seeds."""
    trunk, rule = Trunk(), Recorder()
    weighting = RuleWeighting(rule, trunk.last.parameters(), process_group=group)
    read = [trunk.features(seed) for seed in seeds]
    found = [trunk.losses(z) for z in read]
    weighting(mean_of(found), features=read if features else None)
    return rule.gram


def main(folder: Path, rank: int, method: str) -> None:
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=2)
    torch.manual_seed(rank)
    group = dist.group.WORLD
    results = {name: train(name, "auto", [rank], group) for name in ("fixed", "GradNorm", "drawn")}
    results |= {f"{name} per term": train(name, "per_term", [rank], group) for name in ("fixed", "GradNorm")}
    results["sharded"] = train_on_features([rank], group, sharded=True)
    grams = {of: gram_seen([rank], group, features=of == "features") for of in ("features", "parameters")}
    save_and_exit(folder, rank, {"trained": results, "grams": grams})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
