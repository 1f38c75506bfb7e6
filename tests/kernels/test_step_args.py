"""The arguments of the kernels: Python's names are the members of the C++ structs, in their order."""

import re
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from mtadam_fused import MTAdam
from mtadam_fused.backends import CudaBackend, native
from mtadam_fused.backends.device import FACTORS
from mtadam_fused.tables import StepArgs
from mtadam_fused.tables.param_table import ROW_FIELDS
from mtadam_fused.tables.step_args import GROUP_FIELDS

CSRC = Path(__file__).parents[2] / "csrc"


def members(struct: str, header: str = "launch.h") -> list[str]:
    """Return the names of a struct's members, as the header declares them."""
    text = re.sub(r"//.*", "", (CSRC / header).read_text())
    (body,) = re.findall(rf"struct {struct}(?: : \S+)? {{\n(.*?)\n}};", text, re.DOTALL)
    declarations = [declaration.strip() for declaration in body.split(";") if declaration.strip()]
    return [name.split()[-1].lstrip("*") for declaration in declarations for name in declaration.split(",")]


def step_args() -> StepArgs:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p], backend="reference")
    grads: Any = [[torch.ones(3)]]
    (table,) = optimizer._table_cache.get(optimizer.param_groups, optimizer.state, grads)
    return StepArgs(table, grads, optimizer._validate_groups(), [[1.0]], [-1])


def test_step_args() -> None:
    assert list(step_args().members()) == members("StepArgs")


def test_device_args(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[array] = []
    module = type("Module", (), {"TERM_NORMS": 1, "cuda_run": lambda *arguments: given.extend(arguments[1:3])})
    names: list[list[str]] = []
    pack = native.pack

    def note_names(values: dict[str, int]) -> array:
        names.append(list(values))
        return pack(values)

    monkeypatch.setattr(native, "module", module)
    monkeypatch.setattr(native, "pack", note_names)
    CudaBackend(stream=lambda _: 0)._run(step_args(), "TERM_NORMS")
    assert names == [members("StepArgs"), members("StepArgs") + members("DeviceArgs")]
    assert [len(values) for values in given] == [19, 30]


def test_rows_and_groups() -> None:
    assert list(ROW_FIELDS) == members("Row")
    assert list(GROUP_FIELDS) == members("Group")
    args = step_args()
    assert len(args.table.row_table) == len(ROW_FIELDS)
    assert len(args.group_table) == len(GROUP_FIELDS)


def test_factors() -> None:
    assert len(members("StepFactors", "update_math.h")) == FACTORS


def test_fields_of_triton() -> None:
    pytest.importorskip("triton")
    from mtadam_fused.triton_kernels import fields

    for found, struct in ((fields.CHUNK, "Chunk"), (fields.ROW, "Row"), (fields.GROUP, "Group")):
        assert list(found) == members(struct)
    assert list(fields.FACTORS) == members("StepFactors", "update_math.h")


@pytest.mark.skipif(native.module is None, reason="the native module was not built")
@pytest.mark.parametrize("step", [2, -1])
def test_arguments_with_gaps_are_refused(step: int) -> None:
    nothing = array("q", bytes(8 * 19 * abs(step)))  # no rows: read in the wrong order it is harmless
    with pytest.raises(ValueError, match="the arguments are not contiguous"):
        native.module.term_norms(False, memoryview(nothing)[::step])


@pytest.mark.skipif(native.module is None, reason="the native module was not built")
def test_arguments_of_another_size_are_refused() -> None:
    values = native.pack(step_args().members())
    with pytest.raises(ValueError, match="the arguments have 144 bytes; 152 are needed"):
        native.module.term_norms(False, values[:-1])
