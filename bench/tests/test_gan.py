"""The benchmark of a GAN's generator step, in the small: right steps, and what ``inputs=`` leaves out."""

from functools import partial

import pytest
import torch

from bench.harness.devices import CpuDevice
from bench.harness.measure import Budget, Failure
from bench.harness.suite import Suite
from bench.report.tables import all_tables
from bench.speed import test_gan
from bench.speed.test_gan import MAKERS, measure_case
from bench.workloads import gan
from bench.workloads.gan import GANS, make_gan

CPU = torch.device("cpu")
SHORT = Budget(least=2, most=2, seconds=0)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gan, "WIDTH", 4)


@pytest.mark.parametrize("name", GANS)
def test_records_and_table(name: str) -> None:
    outcome = measure_case(name, Suite(CpuDevice(), SHORT))
    assert not outcome.left_out
    assert outcome.records.keys() == MAKERS.keys()
    assert outcome.records["balanced-inputs"].terms == 3
    (table,) = all_tables(list(outcome.records.values())).values()
    assert table.count("generator (`inputs=`)") == table.count("generator and discriminators") == 2


def test_a_wrong_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop a term from ours: it is then no step on all three."""
    right = MAKERS["balanced-inputs"]
    losing = partial(lambda params, losses, device: right(params, lambda: dict(list(losses().items())[:2]), device))
    monkeypatch.setitem(test_gan.MAKERS, "balanced-inputs", losing)
    outcome = measure_case("dcgan", Suite(CpuDevice(), SHORT))
    assert isinstance(outcome.left_out["balanced-inputs"], Failure)
    assert "balanced-all" in outcome.records


@pytest.mark.parametrize("contender", MAKERS)
def test_inputs_leaves_out_the_discriminators_gradients(contender: str) -> None:
    network = make_gan(GANS["dcgan_4"], CPU)
    params: list[torch.Tensor] = list(network.generator.parameters())
    MAKERS[contender](params, network.stream(), CpuDevice()).run()
    computed = [p.grad is not None for p in network.discriminator_params]
    assert len(computed) == 4 * 13
    assert any(computed) == all(computed) == (not contender.endswith("inputs"))


def test_the_networks_are_dcgans(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the paper's width: sizes of layers from figure 1 of arXiv 1511.06434, without biases before normalization."""
    monkeypatch.setattr(gan, "WIDTH", 128)
    shapes = [tuple(p.shape) for p in gan.make_generator().parameters() if p.dim() == 4]
    assert shapes == [(100, 1024, 4, 4), (1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 3, 4, 4)]
    made = make_gan(1, CPU)
    assert made.generator(made.codes).shape == made.images.shape
