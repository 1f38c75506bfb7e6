"""Fixtures of all tests: every test of the optimizer's arithmetic runs once per backend."""

import pytest
from cases import BACKENDS_OF_THE_CPU

from mtadam_fused.backends import statuses


@pytest.fixture(params=BACKENDS_OF_THE_CPU)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """Every backend with kernels for GPUs; one that cannot be used here is skipped."""
    status = statuses()[request.param]
    if not status.usable:
        pytest.skip(status.reason)
    return request.param
