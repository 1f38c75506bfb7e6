"""Backward passes through compiled models."""

from collections.abc import Iterator
from contextlib import contextmanager

REMEDY = (
    "torch.compile has compiled this model's backward pass for a single use of each graph, because the first loss that "
    "went through it was alone, and now several losses share a graph. Give all terms from the first step on, or set "
    "torch._functorch.config.donated_buffer = False before the first step"
)


@contextmanager
def explain_donated_buffers() -> Iterator[None]:
    """Say what to do where a compiled backward pass refuses to keep its graph.

    Raises:
        RuntimeError: in the place of autograd's own about donated buffers.
    """
    try:
        yield
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
        raise RuntimeError(REMEDY) from error
