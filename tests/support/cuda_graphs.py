"""CUDA graphs in tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def captured(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Capture the body, and restore the stream even if the capture fails, which torch does not."""
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            yield
    finally:
        torch.cuda.set_stream(stream)
