"""Make contenders of whole training steps: forward pass, backward passes and update."""

import torch
from torch import Tensor

from bench.harness.agreement import adam, balanced_adam, mtadam, weighted_adam
from bench.harness.devices import Device
from bench.harness.measure import Contender
from bench.harness.training import Losses, term_gradients
from bench.peers.ours import auto_backend
from bench.peers.rules import RULES, gram_matrix
from bench.peers.torchjd import torchjd_step
from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from oracles.published_loop import PublishedMTAdam

TRAINED_RULE = "PCGrad"


def train_step(optimizer: MTAdam | CombinedAdam, losses: Losses, inputs: list[Tensor] | None = None) -> None:
    """Make a whole training step on the next batch."""
    optimizer.zero_grad()
    optimizer.backward(losses(), inputs=inputs)
    optimizer.step()


def make_mtadam(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Make forward pass, a backward pass per term, our step."""
    optimizer = MTAdam(params, backend=auto_backend(device))

    return Contender("mtadam", lambda: train_step(optimizer, losses), params, oracle=mtadam)


def make_balanced(params: list[Tensor], losses: Losses, device: Device, *, inputs: bool) -> Contender:
    """Make a step of BalancedAdam.

    Args:
        inputs: differentiate with respect to ``params`` only, not to all parameters that the losses depend on.
    """
    optimizer = BalancedAdam(params, backend=auto_backend(device))

    def run() -> None:
        train_step(optimizer, losses, params if inputs else None)

    def oracle(params: list, grads: list[list[Tensor]]) -> None:
        balanced_adam([1.0] * len(grads))(params, grads)

    return Contender("balanced-inputs" if inputs else "balanced-all", run, params, oracle=oracle)


def make_published(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Make forward pass, a backward pass per term, the published loop."""
    loops: list[PublishedMTAdam] = []

    def run() -> None:
        grads = term_gradients(losses(), params)
        if not loops:
            loops.append(PublishedMTAdam([{"params": params}], terms=len(grads)))
        loops[0].step(grads)

    return Contender("published", run, params, oracle=mtadam)


def make_adam_on_sum(params: list[Tensor], losses: Losses, device: Device, *, inputs: bool = False) -> Contender:
    """Make forward pass, a backward pass of the sum, Adam; ``inputs`` as in ``make_balanced``."""
    optimizer = torch.optim.Adam(params, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        torch.stack(list(losses().values())).sum().backward(inputs=params if inputs else None)
        optimizer.step()

    def oracle(params: list, grads: list[list[Tensor]]) -> None:
        adam(params, [[torch.stack(of_terms).sum(dim=0) for of_terms in zip(*grads, strict=True)]])

    return Contender("adam-on-sum-inputs" if inputs else "adam-on-sum", run, params, oracle=oracle)


def make_combined(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Make forward pass, a backward pass per term, the weights and our step."""
    spec = RULES[TRAINED_RULE]
    optimizer = CombinedAdam(params, spec.rule(), backend=auto_backend(device))

    def oracle(params: list, grads: list[list[Tensor]]) -> None:
        weighted_adam(spec.weights(gram_matrix(grads)).tolist())(
            params, grads
        )  # of all parameters: the models are small

    return Contender("combined", lambda: train_step(optimizer, losses), params, oracle=oracle)


def make_torchjd(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Make forward pass, TorchJD's backward pass of all terms, its aggregation, Adam.

    Not held to an update: in which orders it meets the terms is random. The step alone is, with two terms.
    """
    step = torchjd_step(torch.optim.Adam(params, fused=True), RULES[TRAINED_RULE], layerwise=False)
    from torchjd.autojac import backward

    def run() -> None:
        for p in params:
            p.grad = None
        backward(list(losses().values()))
        step()

    return Contender("torchjd", run, params)
