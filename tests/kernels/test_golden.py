"""Every step of the published optimizer's recorded runs."""

import pytest
import torch

from mtadam_fused.backends import Backend
from oracles.numpy_oracle import FAULTS, Parameter, step
from oracles.published_loop import PublishedMTAdam
from oracles.tolerances import F32_TRACE, F64_ABSOLUTE, TooFar, check_params, check_values
from tests.support.golden import NAMES, Trace, check_trace


@pytest.mark.parametrize("name", NAMES)
def test_golden_trace(name: str, backend: str | Backend) -> None:
    check_trace(name, backend, "cpu")


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


def check_oracle(trace: Trace, fault: str | None) -> None:
    """Compare the oracle, with a fault or without, with every parameter of a float64 trace."""
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
    check_oracle(Trace.load(name), None)


@pytest.mark.parametrize("fault", FAULTS)
def test_traces_reject_faults(fault: str) -> None:
    trace = Trace.load("weight_decay" if "decay" in fault else "three_terms_weighted")
    with pytest.raises(TooFar):
        check_oracle(trace, fault)
