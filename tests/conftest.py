"""Fixtures of all tests: every test of the optimizer's arithmetic runs once per backend."""

import pytest
from cases import BACKENDS_OF_THE_CPU


@pytest.fixture(params=BACKENDS_OF_THE_CPU)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param
