"""The golden traces: runs of the published optimizer, recorded step by step (see tests/golden/README.md)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        """The number of parameters."""
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
        """The options that hold for parameter k."""
        for group in self.meta["groups"] or []:
            if k in group["idx"]:
                return self.options() | {name: value for name, value in group.items() if name != "idx"}
        return self.options()

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key].copy())

    def grad(self, t: int, term: int, k: int) -> Tensor:
        return self.tensor(f"grad/{t}/{term}/{k}")
