"""Fixtures of all tests: every test of the optimizer's arithmetic runs once per backend."""

import pytest

from tests.support.cases import CPU_BACKENDS  # before mtadam_fused: turns on Triton's interpreter

# isort: split
from mtadam_fused.backends import statuses

# Triton's interpreter takes as long as all other backends together; test_triton.py is not marked.
INTERPRETED = pytest.param("triton", marks=pytest.mark.slow)


@pytest.fixture(params=[INTERPRETED if name == "triton" else name for name in CPU_BACKENDS])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """Return every backend with kernels for GPUs; skip the test where one cannot be used."""
    status = statuses()[request.param]
    if not status.usable:
        pytest.skip(status.reason)
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that compile something, so that no process starts on one when the others are done."""
    compiling = {item.path for item in items if isinstance(item, pytest.Function) and compiles(item)}
    items.sort(key=lambda item: item.path not in compiling)


def compiles(item: pytest.Function) -> bool:
    """Return whether a test is marked slow by itself or by its module, and not for Triton's interpreter alone."""
    module = item.getparent(pytest.Module)
    marks = [*getattr(item.function, "pytestmark", []), *(module.own_markers if module else [])]
    return any(mark.name == "slow" for mark in marks)
