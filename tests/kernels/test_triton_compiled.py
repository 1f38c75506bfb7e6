"""The Triton kernels compiled for GPUs, without one: what only the interpreter accepts fails here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", "3.6", reason="triton_compile_worker.py knows this Triton's driver")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

KERNELS = ["term_norms", "balance", "mtadam_update"]
COMBINED = ["term_gram", "fold_gram", "begin_step", "combined_adam"]


@pytest.fixture(scope="module", params=[80, 90])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what triton_compile_worker.py prints, with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "tests.kernels.triton_compile_worker", str(request.param)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(("run", "kernels"), [("float32", KERNELS), ("combined", COMBINED)])
def test_nothing_is_compiled_after_the_first_step(run: str, kernels: list[str], compiled: dict[str, Any]) -> None:
    first, *rest = compiled["runs"][run]
    assert first == kernels
    assert len(rest) == 49
    assert not any(rest)


def test_sizes_numbers_and_alignments_share_kernels(compiled: dict[str, Any]) -> None:
    assert not any(compiled["runs"]["other sizes"])
    assert not any(compiled["runs"]["unaligned"])
    assert compiled["runs"]["other terms"] == [KERNELS, []]  # the count sees what is compiled


def test_stages_apart_compile(compiled: dict[str, Any]) -> None:
    assert compiled["runs"]["stages apart"] == [["fold_norms", "balance"]]


def test_every_type_compiles(compiled: dict[str, Any]) -> None:
    first, second = compiled["runs"]["all types"]
    # One kernel per type of parameters, or of arithmetic; those of float32 alone were compiled before.
    assert sorted(first) == sorted(["balance"] + 3 * ["mtadam_update", "term_norms"])
    assert not second
    first, second = compiled["runs"]["combined, all types"]
    assert sorted(first) == sorted(["begin_step"] + 3 * ["combined_adam", "term_gram"])
    assert not second
    assert compiled["refused"]


def test_float32_is_read_in_vectors_and_not_computed_in_float64(compiled: dict[str, Any]) -> None:
    for kernel in ("term_norms", "mtadam_update", "combined_adam"):
        in_float32, in_float64 = compiled["ptx"][f"{kernel} fp32"], compiled["ptx"][f"{kernel} fp64"]
        assert "ld.global.v4.b32" in in_float32
        assert "fma.rn.f32" in in_float32
        assert "fma.rn.f64" not in in_float32
        assert "fma.rn.f64" in in_float64
    for root_or_quotient in ("sqrt.rn.f32", "div.rn.f32"):
        assert root_or_quotient in compiled["ptx"]["mtadam_update fp32"]


def test_bfloat16_is_rounded(compiled: dict[str, Any]) -> None:
    assert "cvt.rn.bf16" in compiled["ptx"]["mtadam_update bf16"]
