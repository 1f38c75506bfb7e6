"""The golden traces: runs of the published optimizer, recorded step by step (see tests/golden/README.md)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtadam_fused import MTAdam
from mtadam_fused.backends import Backend
from oracles.tolerances import F32_TRACE, check_params, check_values

FOLDER = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


@dataclass(frozen=True)
class Trace:
    """One recorded run."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @classmethod
    def load(cls, name: str) -> "Trace":
        with np.load(FOLDER / f"{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        return cls(json.loads(str(arrays.pop("meta"))), arrays)

    @property
    def steps(self) -> range:
        return range(self.meta["steps"])

    @property
    def terms(self) -> range:
        return range(self.meta["terms"])

    @property
    def count(self) -> int:
        """Return the number of parameters."""
        return len(self.meta["shapes"])

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the run's optimizer."""
        names = ("lr", "eps", "weight_decay", "amsgrad", "term_weights")
        return {name: self.meta[name] for name in names} | {"betas": tuple(self.meta["betas"])}

    def params(self) -> list[nn.Parameter]:
        return [nn.Parameter(self.tensor(f"init/{k}")) for k in range(self.count)]

    def groups(self, params: list[nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups over ``params``."""
        groups = self.meta["groups"] or [{"idx": list(range(self.count))}]
        return [{**g, "params": [params[i] for i in g["idx"]]} for g in groups]

    def group_options(self, k: int) -> dict[str, Any]:
        """Return the options that hold for parameter k."""
        for group in self.meta["groups"] or []:
            if k in group["idx"]:
                return self.options() | {name: value for name, value in group.items() if name != "idx"}
        return self.options()

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key].copy())

    def grad(self, t: int, term: int, k: int) -> Tensor:
        return self.tensor(f"grad/{t}/{term}/{k}")

    def scales(self, t: int, k: int) -> np.ndarray:
        """Return what step t scaled the gradients of parameter k by, [terms], by the rule on the recorded norms."""
        norms = self.arrays[f"norm/{t}/{k}"]
        known = norms > 1e-10
        weights = np.asarray(self.group_options(k)["term_weights"] or np.ones(len(norms)))
        anchor = norms[known][0] if known.any() else 1.0
        return np.where(known, weights * anchor / np.where(known, norms, 1.0), 1.0)


def run_step(trace: Trace, optimizer: MTAdam, params: list, t: int) -> None:
    """Make step t of a trace."""
    for group in optimizer.param_groups:
        if trace.meta["lr_per_step"]:
            group["lr"] = trace.meta["lr_per_step"][t]
    for i in trace.terms:
        with optimizer.term(i):
            for k, p in enumerate(params):
                p.grad = trace.grad(t, i, k).to(p.device)
    optimizer.step()


def check_trace(name: str, backend: str | Backend, device: str) -> None:
    """Run a trace, and compare parameters, norms and scales at every step."""
    trace = Trace.load(name)
    params = [nn.Parameter(p.detach().to(device)) for p in trace.params()]
    optimizer = MTAdam(trace.groups(params), **trace.options(), backend=backend)
    order = [k for g in trace.meta["groups"] or [{"idx": range(trace.count)}] for k in g["idx"]]
    single = trace.meta["dtype"] == "float32"
    for t in trace.steps:
        before = [p.detach().cpu().clone() for p in params]
        run_step(trace, optimizer, params, t)
        norms = torch.stack(list(optimizer.running_norms().values()), dim=1)
        scales = torch.stack(list(optimizer.term_scales().values()), dim=1)
        for k, p in enumerate(params):
            if single:
                check_values(p, trace.arrays[f"param/{t}/{k}"], *F32_TRACE)
            else:
                check_params(p.detach().cpu(), trace.arrays[f"param/{t}/{k}"], before[k])
            relative = 1e-5 if single else 1e-12
            check_values(norms[order.index(k)], trace.arrays[f"norm/{t}/{k}"], relative)
            check_values(scales[order.index(k)], trace.scales(t, k), 2 * relative)
