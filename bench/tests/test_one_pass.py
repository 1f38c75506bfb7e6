"""The benchmark of one backward pass, in the small: all contenders step, and the records have a table."""

import pytest
import torch

from bench.harness.devices import CpuDevice
from bench.harness.measure import Budget
from bench.harness.suite import Suite
from bench.peers.one_pass import MAKERS, make_all
from bench.report.tables import all_tables
from bench.speed.test_one_pass import measure_case
from bench.workloads import trunk
from bench.workloads.trunk import Trunk, make_trunk


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "WIDTH", 16)


def small() -> Trunk:
    return make_trunk(torch.device("cpu"))


def test_records_and_table() -> None:
    outcome = measure_case("PCGrad", Suite(CpuDevice(), Budget(least=3, most=3, seconds=0)))
    assert outcome.records.keys() | outcome.left_out.keys() == MAKERS.keys()
    assert outcome.records["rule-features"].faster_than.keys() >= {"adam-on-sum", "rule-per-term"}
    (table,) = all_tables(list(outcome.records.values())).values()
    for shown in ("features", "last shared layer", "all parameters", "one Adam on the sum", "bytes per parameter"):
        assert shown in table


def test_all_train() -> None:
    contenders, _ = make_all("MGDA", small)
    for contender in contenders:
        before = [p.detach().clone() for p in contender.params]
        contender.run()
        moved = [not torch.equal(p, b) for p, b in zip(contender.params, before, strict=True)]
        assert all(moved[: 2 * trunk.LAYERS])  # a head's weight may be 0


def test_the_ways_differ_in_passes() -> None:
    passes: dict[str, int] = {}
    for name in ("rule-features", "rule-last-layer", "rule-per-term"):
        network = small()
        passes[name] = 0

        def count(*_: object, name: str = name) -> None:
            passes[name] += 1

        network.trunk[0].register_full_backward_pre_hook(count)
        MAKERS[name]("MGDA", network).run()
    assert passes == {"rule-features": 1, "rule-last-layer": 1, "rule-per-term": trunk.TERMS}
