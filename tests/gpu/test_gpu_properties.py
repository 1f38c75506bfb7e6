"""Random cases on every backend with kernels for GPUs; apart from the other tests there, for these need Hypothesis."""

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, Phase, given, settings

from tests.support.cases import Case, CombinedCase
from tests.support.strategies import cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ANY = settings(
    max_examples=100,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # a smaller example of a failure is not worth a GPU's minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@ANY
@given(case=cases(device="cuda"))
def test_any_case(case: Case, gpu_backend: str) -> None:
    case.run(gpu_backend)


@ANY
@given(case=cases(device="cuda"))
def test_any_combined_case(case: Case, gpu_backend: str) -> None:
    CombinedCase.like(case).run(gpu_backend)
