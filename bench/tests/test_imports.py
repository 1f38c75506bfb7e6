"""Benchmarks and tests import nothing of each other, and the rooms of bench/ import in one direction only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each room may import itself and those before it.
ROOMS = (
    *("workloads", "harness", "peers", "report", "machine_code", "tuning", "demo", "quality", "install", "speed"),
    "tests",
)


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the full names of the modules and names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("folder", "other"), [("tests", "bench"), ("bench", "tests"), ("oracles", "mtadam_fused")])
def test_one_does_not_import_the_other(folder: str, other: str) -> None:
    found = [(path, name) for path in (ROOT / folder).rglob("*.py") for name in imported_modules(path)]
    assert found
    assert not [path for path, name in found if name.split(".")[0] == other]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_in_one_direction(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for path in (ROOT / "bench" / room).rglob("*.py"):
        imported = {name.split(".")[1] for name in imported_modules(path) if name.startswith("bench.")}
        assert imported <= set(allowed), path
