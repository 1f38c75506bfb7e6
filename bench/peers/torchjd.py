"""Make TorchJD with torch.optim.Adam, ready to step."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bench.harness.agreement import weighted_adam
from bench.harness.devices import Device
from bench.harness.measure import Contender, LeftOutError
from bench.peers.rules import RULES, RuleSpec, gram_matrix
from bench.workloads.shapes import Case, Grads

NO_TORCHJD = "TorchJD is not installed (pip install --no-deps torchjd)"


def torchjd_step(optimizer: torch.optim.Adam, spec: RuleSpec, *, layerwise: bool) -> Callable[[], None]:
    """Return TorchJD's aggregation of the Jacobians in ``.jac``, and a step of the optimizer.

    Args:
        optimizer: of one parameter group.
        layerwise: without bringing the Jacobians of all parameters into one matrix first, which is TorchJD's default.

    Raises:
        LeftOutError: TorchJD is not installed, or has no such aggregation.
    """
    if find_spec("torchjd") is None:
        raise LeftOutError(NO_TORCHJD)
    from torchjd import aggregation
    from torchjd.autojac import jac_to_grad

    aggregator: Any = getattr(aggregation, spec.aggregator)()
    if layerwise and not isinstance(aggregator, aggregation.GramianWeightedAggregator):
        raise LeftOutError(f"TorchJD's {spec.aggregator} needs the Jacobians in one matrix")
    options = {"optimize_gramian_computation": True} if layerwise else {}
    params: list[Tensor] = optimizer.param_groups[0]["params"]

    def run() -> None:
        jac_to_grad(params, aggregator, **options)
        optimizer.step()

    return run


def make_torchjd(name: str, case: Case, device: Device, grads: Grads, *, frees: bool = False) -> Contender:
    """Make the same step by TorchJD and torch.optim.Adam. The Jacobians are ready.

    Held to the update where it is defined: PCGrad meets more than two terms in random orders, and TorchJD's search for
    MGDA's weights is exact for two terms only.

    Args:
        frees: leave the Jacobians to the step alone, which frees them: for its memory. Else they are kept, and the time
            to free them is not the step's.
    """
    params = case.params(device.torch_device)
    spec = RULES[case.rule]
    optimizer = torch.optim.Adam(params, fused=True)
    step = torchjd_step(optimizer, spec, layerwise=name == "torchjd-layerwise")

    def stack() -> Iterator[Tensor]:
        return (torch.stack(of_param) for of_param in zip(*grads, strict=True))

    kept = None if frees else list(stack())

    def prepare() -> None:
        for p, jacobian in zip(params, kept or stack(), strict=True):
            p.grad = None
            p.jac = jacobian  # type: ignore[attr-defined]

    defined = case.terms == 2 or case.rule == "FixedWeights"
    oracle = weighted_adam(spec.weights(gram_matrix(grads)).tolist()) if defined else None
    return Contender(name, step, params, prepare=prepare, state=optimizer.state, oracle=oracle)
