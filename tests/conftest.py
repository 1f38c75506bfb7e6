"""Fixtures of all tests: every test of the optimizer's arithmetic runs once per backend."""

import pytest

from mtadam_fused.backends import CudaBackend, statuses
from tests.support.cases import BACKENDS_OF_THE_CPU


@pytest.fixture(params=BACKENDS_OF_THE_CPU)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every backend with kernels for GPUs, and "cuda-one-launch" where asked for; skipped where it cannot be used."""
    name, _, one_launch = request.param.partition("-")
    status = statuses()[name]
    if not status.usable:
        pytest.skip(status.reason)
    if one_launch:
        monkeypatch.setattr("mtadam_fused.optimizer.select_backend", lambda *_: CudaBackend(one_launch=True))
    return name
