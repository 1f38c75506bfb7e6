"""Random numbers that a seed and a counter alone decide."""

import math
from operator import index

import torch
from torch import Tensor, nn

from ..rules.pcgrad import splitmix64
from .base import default_device

BITS = 53  # of a random integer


class RandomNumbers(nn.Module):
    """Random integers, the same on every device, and others at every replay of a CUDA graph.

    State: ``seed`` and ``draws``, the number of draws so far. A draw reads neither, so it waits for no device.

    Args:
        seed: below 2**62; default one that torch's generator draws.

    Raises:
        ValueError: a ``seed`` out of its range.
    """

    seed: Tensor
    draws: Tensor

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        if seed is not None and (not hasattr(seed, "__index__") or not 0 <= index(seed) < 2**62):
            raise ValueError(f"seed is {seed!r}; it must be a whole number of at least 0 and below 2**62")
        number = int(torch.randint(2**62, (), device="cpu")) if seed is None else index(seed)
        device = default_device()
        self.register_buffer("seed", torch.tensor(number, device=device))
        self.register_buffer("draws", torch.tensor(0, device=device))

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Return ``[count]`` random integers of 53 bits, and count the draw."""
        self.seed, self.draws = self.seed.to(device), self.draws.to(device)
        hashed = splitmix64(splitmix64(splitmix64(self.seed) + self.draws) + torch.arange(count, device=device))
        self.draws += 1
        return hashed >> 64 - BITS & 2**BITS - 1

    def normal(self, count: int, like: Tensor) -> Tensor:
        """Draw ``[count]`` standard normal numbers of the dtype and on the device of ``like``, by Box and Muller."""
        uniform = (self.draw(2 * count, like.device).to(like.dtype) + 0.5) * 2.0**-BITS
        return (-2.0 * uniform[:count].log()).sqrt() * (2.0 * math.pi * uniform[count:]).cos()
