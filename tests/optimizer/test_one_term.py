"""With one term and weight 1, MTAdam is torch.optim.Adam (AdamW with decoupled weight decay)."""

from itertools import product

import pytest
import torch
from torch import nn

from mtadam_fused import MTAdam
from oracles.tolerances import TooFar, check_params
from tests.support.cases import fewer

OPTIONS = list(product((False, True), (False, True), (0.0, 0.1), (False, True)))


def run_both(dtype: torch.dtype, backend: str, lr_factor: float = 1.0, **options) -> None:
    """Make steps of both on the same gradients; Adam runs in float64 from the same stored values."""
    amsgrad, maximize, weight_decay, decoupled = (
        options[k] for k in ("amsgrad", "maximize", "weight_decay", "decoupled")
    )
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=generator, dtype=dtype) for size in ((7,), (33, 5), (), (2, 3, 4))]
    ours = [nn.Parameter(p.clone()) for p in start]
    theirs = [nn.Parameter(p.double()) for p in start]
    peer_class = torch.optim.AdamW if decoupled else torch.optim.Adam
    peer = peer_class(theirs, lr=0.01, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize)
    optimizer = MTAdam(
        ours,
        lr=0.01 * lr_factor,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=decoupled,
        backend=backend,
    )
    for _ in range(fewer(20, backend)):
        grads = [torch.randn(p.shape, generator=generator, dtype=dtype) for p in start]
        before = [p.detach().clone() for p in ours]
        with torch.no_grad():
            for p, q, g in zip(ours, theirs, grads, strict=True):
                q.copy_(p)  # one step at a time: rounding does not add up
                q.grad = g.double()
        with optimizer.term(0):
            for p, g in zip(ours, grads, strict=True):
                p.grad = g
        optimizer.step()
        peer.step()
        for p, q, b in zip(ours, theirs, before, strict=True):
            check_params(p, q.detach().numpy(), b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("amsgrad", "maximize", "weight_decay", "decoupled"), OPTIONS)
def test_one_term_is_adam(dtype, amsgrad, maximize, weight_decay, decoupled, backend) -> None:
    run_both(dtype, backend, amsgrad=amsgrad, maximize=maximize, weight_decay=weight_decay, decoupled=decoupled)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_wrong_learning_rate_is_seen(dtype, backend) -> None:
    options = {"amsgrad": False, "maximize": False, "weight_decay": 0.0, "decoupled": False}
    with pytest.raises(TooFar):
        run_both(dtype, backend, lr_factor=1.01, **options)
