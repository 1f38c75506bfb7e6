"""Losses for the tests of weightings, and the comparison of a weighting with an oracle's answer."""

import numpy as np
import torch
from torch import Tensor, nn

from oracles.numpy_weighting import Answer
from oracles.tolerances import check_values

TERMS = ("a", "b", "c")
LOSSES = np.array([0.3, 7.0, 150.0])
PRIORITIES = np.array([1.0, 0.25, 3.0])


def leaves(values: np.ndarray = LOSSES, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        term: torch.tensor(value, dtype=dtype, requires_grad=True)
        for term, value in zip(TERMS, values.tolist(), strict=True)
    }


def grad_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def check(weighting: nn.Module, losses: dict[str, Tensor], expected: Answer, relative: float) -> None:
    total = weighting(losses)
    assert total.shape == ()
    total.backward()
    check_values(total, np.array(expected.total), relative)
    check_values(torch.stack([grad_of(loss) for loss in losses.values()]), expected.by_loss, relative)
    for parameter in weighting.parameters():
        assert expected.by_learned is not None
        check_values(grad_of(parameter), expected.by_learned, relative)


def histories() -> list[np.ndarray]:
    """Losses of some calls, of which some lack a term."""
    return [np.array(row) for row in ([2, 3, 5], [4, np.nan, 1], [1, 7, np.nan], [8, 1, 4], [9, 2, 6.0])]


def present_losses(row: np.ndarray) -> dict[str, Tensor]:
    return {term: loss for term, loss in leaves(row).items() if not loss.isnan()}
