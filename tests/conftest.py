"""Fixtures of all tests: every test of the optimizer's arithmetic runs once per backend."""

import pytest

from mtadam_fused.backends import BACKENDS


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
