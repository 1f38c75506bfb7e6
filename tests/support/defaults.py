"""Defaults of torch that a user may have set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def unusual_defaults() -> Iterator[None]:
    """Make tensors without a device of their own on the meta device, where nothing can be read; and in bfloat16."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(dtype)
