"""The kernels one by one.

MTAdam's stages, as sharded parameters need them: each stage leaves what the next one takes. And dot products.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mtadam_fused import CombinedAdam
from mtadam_fused.backends import Backend
from mtadam_fused.hyperparameters import MTAdamHyperparameters
from mtadam_fused.rules import MGDA
from mtadam_fused.tables import ParamTable, StepArgs
from mtadam_fused.tables.layout import TermGradients
from oracles.tolerances import TooFar, check_values, same
from tests.support.small_problem import start_training

BETA3 = 0.9  # the default


def prepare_step(backend: str | Backend, device: str, name: str = "MTAdam", **problem: Any) -> tuple[StepArgs, Backend]:
    """Return the arguments of a step in which a term does not reach a parameter, and the backend."""
    training = start_training(name, device, backend, **problem)
    optimizer = training.optimizer
    grads: TermGradients = [list(of_term) for of_term in training.grads]
    grads[1][2] = None
    (table,) = optimizer._table_cache.get(optimizer.param_groups, optimizer.state, grads)
    groups = [MTAdamHyperparameters.from_group(group) for group in optimizer.param_groups]
    weights, anchors = [[1.0] * table.terms], [groups[0].anchor_code(optimizer.terms)]
    return StepArgs(table, grads, groups, weights, anchors), optimizer._backends[table.device]


def values(table: ParamTable) -> list[Tensor]:
    found = [table.steps, table.norm_avg, table.norms.nan_to_num(-1), table.scales, *table.local_params]
    return found + [value for state in table.states for value in state.values()]


@torch.no_grad()
def check_stages(backend: str | Backend, device: str = "cpu", **problem: Any) -> None:
    args, kernels = prepare_step(backend, device, **problem)
    kernels.term_norms(args)
    norms = args.table.norms.cpu()
    expected = [[float("nan") if g is None else g.double().norm() for g in of_term] for of_term in args.grads]
    check_values(norms, torch.tensor(expected).t().numpy(), 1e-6)
    kernels.balance(args)
    kernels.mtadam_update(args)
    at_once, kernels = prepare_step(backend, device, **problem)
    kernels.mtadam_step(at_once)
    assert same(values(args.table), values(at_once.table))


@torch.no_grad()
def check_other_norms(backend: str | Backend, device: str = "cpu") -> None:
    """Check that norms that were replaced between the stages are used, as sharded parameters need it."""
    args, kernels = prepare_step(backend, device)
    before = args.table.norm_avg.double().cpu()
    kernels.term_norms(args)
    whole = torch.rand_like(args.table.norms) + args.table.norms
    parts = args.table.norms.clone()
    args.table.norms.copy_(whole)
    kernels.balance(args)

    def check(norms: Tensor) -> None:
        norms = norms.double().cpu()
        running = torch.where(norms.isnan(), before, BETA3 * before + (1 - BETA3) * norms)
        check_values(args.table.norm_avg.cpu(), running.numpy(), 1e-6)
        check_values(args.table.scales.cpu(), (running[:, :1] / running).numpy(), 1e-5)

    check(whole)
    try:
        check(parts)
    except TooFar:
        return
    raise AssertionError("the norms of parts were taken")


def check_products_beyond_float32(backend: str | Backend, dtype: torch.dtype, device: str = "cpu") -> None:
    """Check dot products that float32 cannot hold, too large and too small ones, over several chunks."""
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(2500, dtype=dtype, device=device))
    sizes = (1e20, 1e-25, 1.0, 1e20, 1e-25)
    grads = [(size * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(dtype) for size in sizes]
    optimizer = CombinedAdam([p], MGDA(), backend=backend)
    for term, grad in enumerate(grads):
        with optimizer.term(term):
            p.grad = grad.to(device)
    optimizer.step()
    (table,) = optimizer._table_cache._tables
    rows = torch.stack(grads).double()
    norms = rows.norm(dim=1)
    expected = (rows / norms[:, None]) @ (rows / norms[:, None]).T
    torch.testing.assert_close(table.gram[0].cpu() / norms / norms[:, None], expected, rtol=0, atol=1e-14)
