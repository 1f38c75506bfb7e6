"""What the optimizers tell of their steps: values per parameter, of terms or of pairs of terms."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from .hyperparameters import Term
from .tables.layout import device_of
from .tables.param_table import ParamTable

Label = str | int | None  # of a parameter: its name, or its position; None for a value of all parameters
Pair = tuple[Term, Term]
OF_ALL_PARAMS = ("weight",)  # quantities that have one value for all parameters
PerParam = Any  # a tensor of [number of parameters], or a dict from their names to scalar tensors


@dataclass
class Reading:
    """Values of one kind at one step, in memory of their own.

    They stay in the order and on the devices of the tables until they are asked for, so that a reading waits for none.
    """

    keys: Sequence[Any]  # [C] terms, or pairs of terms
    blocks: list[tuple[list[int], Tensor]]  # the parameters' positions in the optimizer, and [rows, C]

    def in_order(self, params: int, device: torch.device) -> Tensor:
        """Return ``[params, C]`` values on ``device``, in the optimizer's order, NaN where there are none."""
        if not self.blocks:
            return torch.full((params, len(self.keys)), math.nan, dtype=torch.float64, device=device)
        positions = torch.tensor([i for rows, _ in self.blocks for i in rows], device=device)
        values = torch.cat([values.to(device) for _, values in self.blocks])
        result = torch.full((params, len(self.keys)), math.nan, dtype=values.dtype, device=device)
        result[positions] = values
        return result

    def by_key(self, params: Sequence[Tensor], names: Sequence[str]) -> dict[Any, PerParam]:
        """Return for each key a tensor of [number of parameters], or a dict by ``names`` if there are any."""
        columns = self.in_order(len(params), device_of(params)).unbind(dim=1)
        if names:
            return {key: dict(zip(names, column, strict=True)) for key, column in zip(self.keys, columns, strict=True)}
        return dict(zip(self.keys, columns, strict=True))

    def to_host(self) -> None:
        """Move the values to the CPU, which waits for their devices."""
        self.blocks = [(positions, values.cpu()) for positions, values in self.blocks]


@dataclass
class Row:
    """What was read after one step."""

    step: int
    labels: list[Label]  # of the parameters
    readings: dict[str, Reading]
    is_written: bool = False  # by Recorder.write()

    def entries(self) -> Iterator[tuple[str, Any, Label, float]]:
        """Yield quantity, term or pair of terms, label of the parameter, and value; NaN where there is none."""
        for quantity, reading in self.readings.items():
            labels = [None] if quantity in OF_ALL_PARAMS else self.labels
            values = reading.in_order(len(labels), torch.device("cpu"))
            for key, column in zip(reading.keys, values.unbind(dim=1), strict=False):
                for label, value in zip(labels, column.tolist(), strict=True):
                    yield quantity, key, label, value

    def values_of(self, quantity: str, key: Any) -> Tensor:
        """Return the values of a term, or of a pair of terms, in any order of the parameters."""
        reading = self.readings[quantity]
        known = list(reading.keys)
        return torch.cat(
            [values[:, known.index(key)] for _, values in reading.blocks if key in known] or [torch.empty(0)]
        )


def read_columns(tables: Iterable[ParamTable], name: str, terms: Sequence[Term]) -> Reading:
    """Read the ``name`` ([L, K]) of tables with running norms, where a term has reached the parameter."""
    return Reading(terms, [(t.positions, getattr(t, name).masked_fill(t.norm_avg.isnan(), math.nan)) for t in tables])


def read_cosines(
    tables: Iterable[ParamTable], positions: Sequence[int], terms: Sequence[Term], params: Sequence[Tensor]
) -> Reading:
    """Read the cosines between the gradients that the dot products in the tables are of.

    Args:
        tables: whose dot products are of the last step.
        positions: among ``terms`` of the tables' terms.
        terms: all terms of the optimizer.
        params: all parameters of the optimizer.
    """
    where = {id(p): i for i, p in enumerate(params)}
    column = {k: i for i, k in enumerate(positions)}
    pairs = list(combinations(range(len(terms)), 2))
    blocks = []
    for table in tables:
        rows = [row for row, p in enumerate(table.params) if id(p) in where]  # the others have left the optimizer
        cosines = cosines_of(table.gram if len(rows) == len(table.params) else table.gram[rows])
        absent = table.gram.new_full((len(rows),), math.nan)
        columns = [cosines[:, column[a], column[b]] if a in column and b in column else absent for a, b in pairs]
        values = torch.stack(columns, dim=1) if pairs else absent.unsqueeze(1)[:, :0]
        blocks.append(([where[id(table.params[row])] for row in rows], values))
    return Reading([(terms[a], terms[b]) for a, b in pairs], blocks)


def cosines_of(gram: Tensor) -> Tensor:
    """Return the cosines ``[..., K, K]`` of vectors with these dot products, NaN where one of two is zero."""
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    return (gram / norms.unsqueeze(-1) / norms.unsqueeze(-2)).clamp(-1.0, 1.0)


def unique_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the parameters' names, or nothing where the optimizer was not made from named parameters.

    Two models can have the same names: those get their group's number in front, as in "group1.weight".
    """
    if not all("param_names" in group for group in groups):
        return []
    found = [(number, name) for number, group in enumerate(groups) for name in group["param_names"]]
    names = [name for _, name in found]
    if len(set(names)) == len(names):
        return names
    return [name if names.count(name) == 1 else f"group{number}.{name}" for number, name in found]


def describe(key: Any) -> str:
    """Return a term, or a pair of terms, as text."""
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)
