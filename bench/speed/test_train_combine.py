"""Whole training steps of small models with PCGrad: CombinedAdam beside TorchJD, and Adam on the sum of the losses."""

from importlib.util import find_spec

import pytest
from torch import Tensor

from bench.harness.agreement import weighted_adam
from bench.harness.devices import Device
from bench.harness.measure import Contender
from bench.harness.suite import CLOCK, Outcome, Suite
from bench.peers.ours import auto_backend
from bench.peers.torchjd import NO_TORCHJD, RULES, gram_of, torchjd_step
from bench.speed.test_train import CASES, Losses, Maker, make_adam_on_sum, measure_makers
from mtadam_fused import CombinedAdam

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "train-combine"
QUICK_CASES = ("diabetes_quantiles",)
RULE = "PCGrad"


def make_combined(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Forward, a backward pass per term, the weights and our step."""
    way = RULES[RULE]
    optimizer = CombinedAdam(params, way.rule(), backend=auto_backend(device))

    def run() -> None:
        optimizer.zero_grad()
        optimizer.backward(losses())
        optimizer.step()

    def oracle(params: list, grads: list[list[Tensor]]) -> None:
        weighted_adam(way.weights(gram_of(grads)).tolist())(params, grads)  # of all parameters: the models are small

    return Contender("combined", run, params, oracle=oracle)


def make_torchjd(params: list[Tensor], losses: Losses, device: Device) -> Contender:
    """Forward, TorchJD's backward pass of all terms, its aggregation, Adam.

    Not held to an update: in which orders it meets the terms is random. The step alone is, with two terms.
    """
    step = torchjd_step(params, RULES[RULE], layerwise=False)
    from torchjd.autojac import backward

    def run() -> None:
        for p in params:
            p.grad = None
        backward(list(losses().values()))
        step()

    return Contender("torchjd", run, params)


MAKERS: dict[str, Maker] = {"combined": make_combined, "torchjd": make_torchjd, "adam-on-sum": make_adam_on_sum}


@pytest.mark.parametrize("contender", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_train_combine(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_training)


def measure_training(name: str, suite: Suite) -> Outcome:
    """See ``measure_makers``."""
    makers, left_out = MAKERS, {}
    if find_spec("torchjd") is None:
        makers, left_out = {name: maker for name, maker in MAKERS.items() if name != "torchjd"}, {"torchjd": NO_TORCHJD}
    return measure_makers(name, suite, makers, left_out, group=GROUP, rule=RULE)
