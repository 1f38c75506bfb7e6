"""The warning about an anchor that has faded."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from mtadam_fused import BalancedAdam, MTAdam
from mtadam_fused.anchor_watch import EVERY


def train(optimizer: MTAdam, last: float, steps: int = 4 * EVERY) -> list[warnings.WarningMessage]:
    """Let the gradient of the first term fall to ``last`` times its size, and return the warnings."""
    (p,) = optimizer.param_groups[0]["params"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(steps):
            optimizer.backward({"fading": last ** min(1.0, i / (steps // 2)) * p.sum(), "steady": 2 * p.sum()})
            optimizer.step()
    return caught


def sum_of(params: list[nn.Parameter]) -> torch.Tensor:
    return torch.stack([p.sum() for p in params]).sum()


def make(kind: type[MTAdam] = MTAdam, **options: Any) -> MTAdam:
    return kind([nn.Parameter(torch.ones(5))], **options)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("options", [{}, {"anchor": "fading"}, {"anchor": "geometric_mean"}], ids=str)
def test_a_faded_anchor_is_told_once_to_the_caller_of_step(options: dict[str, Any], backend: str) -> None:
    last = 1e-8 if options.get("anchor") == "geometric_mean" else 1e-4
    (warning,) = train(make(backend=backend, **options), last)
    assert "the running norm of the anchor has fallen below 0.001 of its peak" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("options", [{"anchor": "none"}, {"anchor": "steady"}, {"anchor": "geometric_mean"}], ids=str)
def test_an_anchor_that_holds_is_not(options: dict[str, Any]) -> None:
    assert not train(make(**options), 1e-4)


def test_nor_one_that_falls_a_little() -> None:
    assert not train(make(), 2e-3)


def test_balanced_adam_has_none() -> None:
    assert not train(make(BalancedAdam), 1e-12)


def test_only_the_groups_with_an_anchor_count() -> None:
    groups: list[dict[str, Any]] = [
        {"params": [nn.Parameter(torch.ones(5))]},
        {"params": [nn.Parameter(torch.ones(5))], "anchor": "none"},
    ]
    for count in (1, 2):
        optimizer = MTAdam(groups[2 - count :])
        params = [group["params"][0] for group in groups[2 - count :]]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for i in range(2 * EVERY):
                fading = 1e-4 ** (i / EVERY)
                optimizer.backward({"fading": fading * params[0].sum() + params[-1].sum(), "steady": sum_of(params)})
                optimizer.step()
        assert len(caught) == count - 1


def test_a_copy_warns_anew() -> None:
    optimizer = make()
    assert len(train(optimizer, 1e-4)) == 1
    assert not train(optimizer, 1e-4)
    assert len(train(copy.deepcopy(optimizer), 1e-4)) == 1
