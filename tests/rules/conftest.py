"""The two ways to weigh: the torch code of rules, and their kernels."""

from collections.abc import Iterator

import pytest

from mtadam_fused.backends import native
from tests.support.rule_kernels import weighing_with


@pytest.fixture(params=["torch", "kernels"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "torch":
        with weighing_with(None):
            yield
    elif native.module is None:
        pytest.skip("the native module was not built")
    else:
        yield
