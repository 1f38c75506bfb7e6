"""The generator's step of a GAN, K = 3: what ``inputs=`` saves, which leaves out the discriminators' gradients."""

from functools import partial

import pytest
from torch import Tensor

from bench.harness.suite import CLOCK, Outcome, Suite
from bench.harness.training import Losses, Maker, measure_networks
from bench.peers.training import make_adam_on_sum, make_balanced
from bench.workloads.gan import GANS, make_gan

pytestmark = pytest.mark.benchmark(timer=CLOCK.read)

GROUP = "gan"
CASES = tuple(GANS)
QUICK_CASES = ("dcgan_4", "dcgan")
MAKERS: dict[str, Maker] = {
    "balanced-inputs": partial(make_balanced, inputs=True),
    "balanced-all": partial(make_balanced, inputs=False),
    "adam-on-sum": make_adam_on_sum,
    "adam-on-sum-inputs": partial(make_adam_on_sum, inputs=True),
}


@pytest.mark.parametrize("contender", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_gan(case: str, contender: str, suite: Suite, request: pytest.FixtureRequest) -> None:
    suite.report(request, measure_case)


def measure_case(name: str, suite: Suite) -> Outcome:
    """Check and time the steps; see ``measure_networks``."""

    def make() -> tuple[list[Tensor], Losses]:
        gan = make_gan(GANS[name], suite.device.torch_device)
        return list(gan.generator.parameters()), gan.stream()

    return measure_networks(make, suite, MAKERS, {}, group=GROUP, workload=name)
