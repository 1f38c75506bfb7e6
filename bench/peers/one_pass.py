"""Make contenders of whole training steps with a rule: one backward pass of our kind, a pass per term, TorchJD's."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bench.harness.measure import Contender, LeftOutError
from bench.peers.torchjd import NO_TORCHJD
from bench.workloads.trunk import Trunk
from mtadam_fused import CombinedAdam, rules
from mtadam_fused.weighting import RuleWeighting


def adam_on(total: Callable[[], Tensor], trunk: Trunk, name: str) -> Contender:
    """Make a step of fused Adam on a total, with one backward pass of it."""
    optimizer = torch.optim.Adam(trunk.params, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        total().backward()
        optimizer.step()

    return Contender(name, run, trunk.params)


def make_sum(rule: str, trunk: Trunk) -> Contender:
    """Make a step on the plain sum of the losses, which no rule weights."""
    return adam_on(lambda: torch.stack(list(trunk.losses(trunk.features()).values())).sum(), trunk, "adam-on-sum")


def make_features(rule: str, trunk: Trunk) -> Contender:
    """Make a step of RuleWeighting, which looks at the features' gradients."""
    weighting = RuleWeighting(getattr(rules, rule)())

    def total() -> Tensor:
        features = trunk.features()
        return weighting(trunk.losses(features), features=features)

    return adam_on(total, trunk, "rule-features")


def make_last_layer(rule: str, trunk: Trunk) -> Contender:
    """Make a step of CombinedAdam, whose rule looks at the last shared layer."""
    found = getattr(rules, rule)()
    found.parameters = trunk.last_shared
    return combined(found, trunk, "rule-last-layer")


def make_per_term(rule: str, trunk: Trunk) -> Contender:
    """Make a step of CombinedAdam, whose rule looks at all shared parameters: a backward pass per term."""
    return combined(getattr(rules, rule)(), trunk, "rule-per-term")


def combined(rule: Any, trunk: Trunk, name: str) -> Contender:
    """Make a step of CombinedAdam."""
    optimizer = CombinedAdam(trunk.params, rule)

    def run() -> None:
        optimizer.zero_grad()
        optimizer.backward(trunk.losses(trunk.features()))
        optimizer.step()

    return Contender(name, run, trunk.params)


def make_autojac(rule: str, trunk: Trunk) -> Contender:
    """Make TorchJD's step from the Jacobian of all parameters."""
    aggregation = torchjd()
    from torchjd.autojac import backward, jac_to_grad

    aggregator, optimizer = getattr(aggregation, rule)(), torch.optim.Adam(trunk.params, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        backward(list(trunk.losses(trunk.features()).values()))
        jac_to_grad(trunk.params, aggregator)
        optimizer.step()

    return Contender("torchjd", run, trunk.params)


def make_autogram(rule: str, trunk: Trunk) -> Contender:
    """Make TorchJD's step from the Gramian of the trunk's Jacobian, and one backward pass of the weighted sum."""
    aggregation = torchjd()
    from torchjd.autogram import Engine

    engine, weighting = Engine(trunk.trunk, batch_dim=None), getattr(aggregation, f"{rule}Weighting")()

    optimizer = torch.optim.Adam(trunk.params, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        losses = torch.stack(list(trunk.losses(trunk.features()).values()))
        losses.backward(weighting(engine.compute_gramian(losses)))
        optimizer.step()

    return Contender("torchjd-autogram", run, trunk.params)


def torchjd() -> Any:
    """Return TorchJD's aggregators.

    Raises:
        LeftOutError: it is not installed.
    """
    if find_spec("torchjd") is None:
        raise LeftOutError(NO_TORCHJD)
    from torchjd import aggregation

    return aggregation


MAKERS: dict[str, Callable[[str, Trunk], Contender]] = {
    "adam-on-sum": make_sum,
    "rule-features": make_features,
    "rule-last-layer": make_last_layer,
    "rule-per-term": make_per_term,
    "torchjd": make_autojac,
    "torchjd-autogram": make_autogram,
}


def make_all(rule: str, trunk: Callable[[], Trunk]) -> tuple[list[Contender], dict[str, str]]:
    """Make all contenders, each on a network of its own; return them, and the reasons for those left out."""
    made = {name: make_or_reason(maker, rule, trunk()) for name, maker in MAKERS.items()}
    contenders = [contender for contender in made.values() if isinstance(contender, Contender)]
    return contenders, {name: reason for name, reason in made.items() if isinstance(reason, str)}


def make_or_reason(maker: Callable[[str, Trunk], Contender], rule: str, trunk: Trunk) -> Contender | str:
    """Return the contender, or the reason to leave it out."""
    try:
        return maker(rule, trunk)
    except (LeftOutError, ImportError) as error:  # of what TorchJD's rule needs
        return str(error)
