"""README, and what is in it."""

import re
from pathlib import Path

import torch
from torch import Tensor

README = (Path(__file__).parents[2] / "README.md").read_text()


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def make_batch(size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Make a batch for README's examples: inputs, depth and normals."""
    return size * torch.randn(5, 3), size * torch.randn(5), size * torch.randn(5, 2)
