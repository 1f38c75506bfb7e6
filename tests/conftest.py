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
