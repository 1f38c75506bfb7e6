"""The optimizer's step alone, gradients ready: ours against torch.optim.Adam(fused=True) and the published loop.

Bytes per float32 element are those of the algorithm: 16K + 16 for MTAdam's step with K terms (each gradient is read
twice), 28 for Adam's, 8 for a copy. ``pytest bench`` prints the tables; pytest-benchmark's options and its JSON work as
ever.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measure import Contender, take_turns
from report import Report, Row
from torch import Tensor, nn
from workloads import make_grads, make_params

from mtadam_fused import MTAdam

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from published import PublishedMTAdam

TURNS = 11


def ours(params: list[nn.Parameter], grads: list[list[Tensor]], backend: str = "cpu") -> Contender:
    """Our step; taking the gradients is not timed."""
    optimizer = MTAdam(params, backend=backend)
    elements = sum(p.numel() for p in params)

    def take() -> None:
        for k, of_term in enumerate(grads):
            with optimizer.term(k):
                for p, g in zip(params, of_term, strict=True):
                    p.grad = g

    return Contender(f"mtadam_fused ({backend})", optimizer.step, take, (16 * len(grads) + 16) * elements)


def fused_adam(params: list[nn.Parameter], grads: list[Tensor]) -> Contender:
    optimizer = torch.optim.Adam(params, fused=True)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return Contender("torch.optim.Adam(fused=True)", optimizer.step, bytes_moved=28 * sum(p.numel() for p in params))


def copy(elements: int) -> Contender:
    source, target = torch.ones(elements), torch.empty(elements)
    return Contender("copy", lambda: target.copy_(source), bytes_moved=8 * elements)


def published(params: list[nn.Parameter], grads: list[list[Tensor]]) -> Contender:
    optimizer = PublishedMTAdam([{"params": params}], terms=len(grads))
    return Contender("published loop", lambda: optimizer.step(grads))


@pytest.mark.parametrize("terms", [2, 4, 10])
@pytest.mark.parametrize("workload", ["20 layers of 1 M", "1 layer of 20 M"])
def test_bandwidth(workload: str, terms: int, benchmark: Callable, report: Report) -> None:
    grads = make_grads(make_params(workload), terms)
    elements = sum(g.numel() for g in grads[0])
    mine = ours(make_params(workload), grads)
    peer = fused_adam(make_params(workload), grads[0])
    times = take_turns([mine, peer, copy(elements)], TURNS)
    row = {
        "workload": workload,
        "K": terms,
        "GB/s": times.gb_per_second(mine.name),
        "Adam GB/s": times.gb_per_second(peer.name),
        "copy GB/s": times.gb_per_second("copy"),
        "of Adam's GB/s": times.faster(mine.name, peer.name) * (16 * terms + 16) / 28,
        "as fast as K Adam steps": times.faster(mine.name, peer.name) * terms,
    }
    record(benchmark, report, "Bandwidth of a step", row, mine)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("terms", [2, 10])
def test_published_network(terms: int, backend: str, benchmark: Callable, report: Report) -> None:
    grads = make_grads(make_params("mnist"), terms)
    mine = ours(make_params("mnist"), grads, backend)
    loop = published(make_params("mnist"), grads)
    check_same_update(terms, backend)
    times = take_turns([mine, loop], TURNS)
    row = {
        "backend": backend,
        "K": terms,
        "ms": 1e3 * times.median(mine.name),
        "published loop ms": 1e3 * times.median(loop.name),
        "times as fast": times.faster(mine.name, loop.name),
    }
    record(
        benchmark,
        report,
        "The network of the published MNIST experiment (1.2 M parameters), against the published loop",
        row,
        mine,
    )


def check_same_update(terms: int, backend: str) -> None:
    """Fails unless both sides make the same step: a comparison of speeds means nothing otherwise."""
    params, others = make_params("mnist"), make_params("mnist")
    grads = make_grads(params, terms)
    for contender in (ours(params, grads, backend), published(others, grads)):
        contender.prepare()
        contender.run()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def record(benchmark: Callable, report: Report, title: str, row: Row, mine: Contender) -> None:
    """Hands the measurement to pytest-benchmark, with ``row`` beside it, and to the table."""
    benchmark.extra_info |= row  # type: ignore[attr-defined]
    benchmark.pedantic(mine.run, setup=mine.prepare, rounds=TURNS)  # type: ignore[attr-defined]
    report.setdefault(title, []).append(row)
