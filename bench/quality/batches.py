"""Batches without end."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from bench.demo.data import batches


def endless(positions: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield the batches of epoch after epoch, as the demo draws them."""
    generator = torch.Generator().manual_seed(seed)
    return itertools.chain.from_iterable(batches(positions, generator) for _ in itertools.count())
