"""CombinedAdam and TorchJD with the same rules, each ready to make the step, and the weights that they should find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.harness import byte_model
from bench.harness.agreement import weighted_adam
from bench.harness.devices import Device
from bench.harness.measure import Contender, LeftOutError
from bench.peers.ours import ONE_LAUNCH, Peer, give, make_adam_on_sum, make_copy, ours
from bench.workloads.shapes import Case, Grads, elements
from mtadam_fused import CombinedAdam
from mtadam_fused.backends import statuses
from mtadam_fused.rules import MGDA, FixedWeights, PCGrad, Rule

SEED = 0
NO_TORCHJD = "TorchJD is not installed (pip install --no-deps torchjd)"


def gram_of(grads: Grads) -> np.ndarray:
    """[K, K] dot products of the terms' gradients, in float64."""
    gram = np.zeros((len(grads), len(grads)))
    for of_param in zip(*grads, strict=True):
        rows = torch.stack([g.flatten() for g in of_param]).double()
        gram += (rows @ rows.T).cpu().numpy()
    return gram


def projected_weights(gram: np.ndarray) -> np.ndarray:
    """PCGrad's weights (arXiv 2001.06782, algorithm 1), terms met in the orders of the first step."""
    total = np.zeros(len(gram))
    for k, order in enumerate(PCGrad(seed=SEED).orders(len(gram)).tolist()):
        weights = np.eye(len(gram))[k]
        for j in order:
            if j != k and gram[j] @ weights < 0:
                weights[j] -= gram[j] @ weights / gram[j, j]
        total += weights
    return total


def least_norm_weights(gram: np.ndarray) -> np.ndarray:
    """MGDA's weights, by non-negative least squares: of ``|G'w|^2 + (1 - sum w)^2``, scaled to the sum 1."""
    from scipy.optimize import nnls  # which a machine that is measured need not have

    root = np.linalg.cholesky(gram / gram.diagonal().min())
    weights, _ = nnls(np.vstack([root.T, np.ones(len(gram))]), np.eye(len(gram) + 1)[-1])
    return weights / weights.sum()


@dataclass(frozen=True)
class Way:
    """A rule of ours, the aggregator of TorchJD that does the same, and the weights that they should find."""

    rule: Callable[[], Rule]
    aggregator: str
    weights: Callable[[np.ndarray], np.ndarray]  # from the dot products


RULES = {
    "FixedWeights": Way(FixedWeights, "Sum", lambda gram: np.ones(len(gram))),
    "PCGrad": Way(lambda: PCGrad(seed=SEED), "PCGrad", projected_weights),
    "MGDA": Way(MGDA, "MGDA", least_norm_weights),
}


def make_combined(backend: str, case: Case, device: Device, grads: Grads) -> Contender:
    """The weights and our step; taking the gradients is not timed."""
    params = case.params(device.place)
    way = RULES[case.rule]
    optimizer = CombinedAdam(params, way.rule(), backend=backend)
    moved = byte_model.combined_step(case.terms, case.element, gram=optimizer.rule.needs_gram) * elements(params)
    return Contender(
        f"combined-{backend}",
        optimizer.step,
        params,
        prepare=lambda: give(optimizer, params, grads),
        bytes_moved=moved,
        state=optimizer.state,
        oracle=weighted_adam(way.weights(gram_of(grads)).tolist()),
        exact=True,
    )


def torchjd_step(params: Sequence[Tensor], way: Way, *, layerwise: bool) -> Callable[[], None]:
    """TorchJD's aggregation of the Jacobians in ``.jac``, and a step of fused Adam.

    Args:
        layerwise: without bringing the Jacobians of all parameters into one matrix first, which is TorchJD's default.

    Raises:
        LeftOutError: TorchJD is not installed, or has no such aggregation.
    """
    if find_spec("torchjd") is None:
        raise LeftOutError(NO_TORCHJD)
    from torchjd import aggregation
    from torchjd.autojac import jac_to_grad

    aggregator: Any = getattr(aggregation, way.aggregator)()
    if layerwise and not isinstance(aggregator, aggregation.GramianWeightedAggregator):
        raise LeftOutError(f"TorchJD's {way.aggregator} needs the Jacobians in one matrix")
    options = {"optimize_gramian_computation": True} if layerwise else {}
    optimizer = torch.optim.Adam(params, fused=True)

    def run() -> None:
        jac_to_grad(params, aggregator, **options)
        optimizer.step()

    return run


def make_torchjd(name: str, case: Case, device: Device, grads: Grads) -> Contender:
    """The same by TorchJD and torch.optim.Adam; the Jacobians are ready.

    Held to the update where it is defined: PCGrad meets more than two terms in random orders, and TorchJD's search for
    MGDA's weights is exact for two terms only.
    """
    params = case.params(device.place)
    way = RULES[case.rule]
    step = torchjd_step(params, way, layerwise=name == "torchjd-layerwise")
    jacobians = [torch.stack(of_param) for of_param in zip(*grads, strict=True)]

    def prepare() -> None:
        for p, jacobian in zip(params, jacobians, strict=True):
            p.grad = None
            p.jac = jacobian  # type: ignore[attr-defined]

    defined = case.terms == 2 or case.rule == "FixedWeights"
    oracle = weighted_adam(way.weights(gram_of(grads)).tolist()) if defined else None
    return Contender(name, step, params, prepare=prepare, oracle=oracle)


# By name, most wanted first.
COMBINED: dict[str, Peer] = {
    **{
        f"combined-{backend}": ours(backend, make_combined, lambda terms: 3)
        for backend in statuses()
        if backend != ONE_LAUNCH
    },
    "torchjd": Peer(partial(make_torchjd, "torchjd"), lambda terms: 2 * terms + 5),
    "torchjd-layerwise": Peer(partial(make_torchjd, "torchjd-layerwise"), lambda terms: terms + 4),
    "copy": Peer(make_copy, lambda terms: 2),
    "adam-on-sum": Peer(make_adam_on_sum, lambda terms: 3),
}
