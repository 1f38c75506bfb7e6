"""Every step of the published optimizer's recorded runs."""

import pytest
import torch
from torch import nn

from mtadam_fused import MTAdam
from mtadam_fused.backends import Backend
from oracles.numpy_oracle import FAULTS, Parameter, step
from oracles.published_loop import PublishedMTAdam
from oracles.tolerances import F32_TRACE, F64_ABSOLUTE, TooFar, check_params, check_values
from tests.support.golden import NAMES, Trace


def run(trace: Trace, optimizer: MTAdam, params: list, t: int) -> None:
    for group in optimizer.param_groups:
        if trace.meta["lr_per_step"]:
            group["lr"] = trace.meta["lr_per_step"][t]
    for i in trace.terms:
        with optimizer.term(i):
            for k, p in enumerate(params):
                p.grad = trace.grad(t, i, k).to(p.device)
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_golden_trace(name: str, backend: str | Backend) -> None:
    compare_with_trace(name, backend, "cpu")


def compare_with_trace(name: str, backend: str | Backend, device: str) -> None:
    """Runs a trace, and compares every step of it."""
    trace = Trace.load(name)
    params = [nn.Parameter(p.detach().to(device)) for p in trace.params()]
    optimizer = MTAdam(trace.groups(params), **trace.options(), backend=backend)
    order = [k for g in trace.meta["groups"] or [{"idx": range(trace.count)}] for k in g["idx"]]
    single = trace.meta["dtype"] == "float32"
    for t in trace.steps:
        before = [p.detach().cpu().clone() for p in params]
        run(trace, optimizer, params, t)
        norms = torch.stack(list(optimizer.running_norms().values()), dim=1)
        for k, p in enumerate(params):
            if single:
                check_values(p, trace.arrays[f"param/{t}/{k}"], *F32_TRACE)
            else:
                check_params(p.detach().cpu(), trace.arrays[f"param/{t}/{k}"], before[k])
            check_values(norms[order.index(k)], trace.arrays[f"norm/{t}/{k}"], relative=1e-5 if single else 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_published_loop_reproduces_the_trace(name: str) -> None:
    trace = Trace.load(name)
    params = trace.params()
    groups = trace.groups(params)
    optimizer = PublishedMTAdam(groups, trace.meta["terms"], **trace.options())
    order = [next(k for k, p in enumerate(params) if p is q) for g in groups for q in g["params"]]
    for t in trace.steps:
        if trace.meta["lr_per_step"]:
            for group in optimizer.param_groups:
                group["lr"] = trace.meta["lr_per_step"][t]
        optimizer.step([[trace.grad(t, i, k) for k in order] for i in trace.terms])
        for k, p in enumerate(params):
            single = trace.meta["dtype"] == "float32"
            check_values(p, trace.arrays[f"param/{t}/{k}"], *(F32_TRACE if single else (0, F64_ABSOLUTE)))


def formula_against(trace: Trace, fault: str | None) -> None:
    """Compares the formula, with a fault or without, with every parameter of a float64 trace."""
    for k in range(trace.count):
        options = trace.group_options(k)
        options["weights"] = dict(enumerate(options.pop("term_weights")))
        x = Parameter(trace.arrays[f"init/{k}"])
        for t in trace.steps:
            before = torch.from_numpy(x.value)
            lr = trace.meta["lr_per_step"][t] if trace.meta["lr_per_step"] else options["lr"]
            grads = {i: trace.arrays[f"grad/{t}/{i}/{k}"] for i in trace.terms}
            step(x, grads, **{**options, "lr": lr}, fault=fault)
            check_params(torch.from_numpy(x.value), trace.arrays[f"param/{t}/{k}"], before)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "float32"])
def test_formula_reproduces_the_trace(name: str) -> None:
    formula_against(Trace.load(name), None)


@pytest.mark.parametrize("fault", FAULTS)
def test_traces_reject_faults(fault: str) -> None:
    trace = Trace.load("weight_decay" if "decay" in fault else "three_terms_weighted")
    with pytest.raises(TooFar):
        formula_against(trace, fault)
