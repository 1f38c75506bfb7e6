"""Runs rules with given kernels, or with their torch code."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from mtadam_fused.backends import native
from mtadam_fused.rules import kernels
from mtadam_fused.rules.kernels import Kernel


@contextmanager
def weighing_with(kernel: Kernel | None) -> Iterator[None]:
    """Make rules weigh with ``kernel``, or with their torch code."""
    with mock.patch.object(kernels, "kernel_for", return_value=kernel):
        yield


def native_kernel(name: str) -> Kernel:
    """Return a rule's kernel for the CPU; skip the test where it was not built."""
    if not hasattr(native.module, name):
        pytest.skip("the native module was not built")
    return getattr(native.module, name)
