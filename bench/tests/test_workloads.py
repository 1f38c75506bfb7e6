"""The benchmarks' workloads are the published networks, and their measuring can tell a wrong step."""

import contextlib
import gc
import weakref
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.harness import byte_model
from bench.harness.agreement import Start, check_contenders, check_first_run, weighted_adam
from bench.harness.devices import CpuDevice, CudaDevice, Device
from bench.harness.measure import Budget, Contender, Failure, LeftOutError, speedup, take_turns
from bench.harness.records import Record, make_records
from bench.harness.side_by_side import Peer, make_contenders
from bench.harness.suite import PROMISED, Suite, sort_key
from bench.harness.training import Losses, measure_training
from bench.peers import ours as making
from bench.peers.catalog import COMBINE_PEERS, STEP_PEERS
from bench.peers.compiled import COMPILED, make_compiled
from bench.peers.ours import make_graph
from bench.peers.rules import RULES, gram_matrix, mgda_weights
from bench.peers.training import make_mtadam
from bench.speed import test_combine, test_step
from bench.workloads.shapes import WORKLOADS, Case, Grads, count_elements
from mtadam_fused import MTAdam
from oracles.tolerances import TooFar

# Parameters as published. Where the source gives millions only, the sum over the layers that it describes stands here.
PUBLISHED = {
    "mnist": 784 * 500 + 500 + 500 * 1000 + 1000 + 1000 * 300 + 300 + 300 * 10 + 10,  # MTAdam's MNIST experiment
    "srresnet": 1_549_462,  # 1.5 M: SRGAN, arXiv 1609.04802, with the published 9 x 9 output layer
    "cyclegan": 11_378_179,  # "11.378 M", printed by the authors' pytorch-CycleGAN-and-pix2pix
    "pix2pix": 54_413_955,  # ... which prints "54.414 M" for unet_256 with batch norms
    "resnet50": 25_557_032,  # torchvision's documentation of resnet50
    "vit_b16": 86_567_656,  # torchvision's documentation of vit_b_16
    "bert_base": 109_482_240,  # Hugging Face's bert-base-uncased, "110M" in arXiv 1810.04805
    "gpt2_small": 124_439_808,  # Hugging Face's gpt2, "124M" in OpenAI's release
    "decoder_1b": 1_100_048_384,  # TinyLlama-1.1B, arXiv 2401.02385
    "tiny_1000": 64_000,
    "small_300": 300 * 1024,
    "equal_20m": 20_000_000,
    "equal_40": 20_000_000,
    "one_20m": 20_000_000,
    "equal_100m": 100_000_000,
}
CPU = CpuDevice()
SMALL = Case("small_300", 3)


@pytest.mark.parametrize("name", WORKLOADS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    shapes = Case(name, 2).shapes
    assert sum(torch.Size(shape).numel() for shape in shapes) == PUBLISHED[name]


def test_byte_model_is_the_papers() -> None:
    for terms in (1, 2, 4, 10):
        assert byte_model.mtadam_step(terms, 4) == 16 * terms + 16
        assert byte_model.mtadam_state(terms) == 4 * terms + 4
    assert byte_model.mtadam_step(4, 2) == 4 * (2 + 2) + 4 * 8 + 8 + 4  # bfloat16: only moments are float32
    assert byte_model.combined_step(4, 4, gram=True) == 4 * 4 + 4 * 4 + 24
    assert byte_model.combined_step(4, 4, gram=False) == 4 * 4 + 24
    assert byte_model.adam_step(4) == 28
    assert byte_model.copy(4) == 8
    assert (byte_model.mtadam_read(4, 4), byte_model.balanced_read(4, 4)) == (12 * 4 + 8, 8 * 4 + 12)


def contenders() -> tuple[Start, dict[str, Contender]]:
    """Return contenders of a small case that must make the same step."""
    names = ["mtadam-reference", "mtadam-cpu", "adam-on-sum", "published"]
    grads, made, left_out = make_contenders(SMALL, CPU, {name: STEP_PEERS[name] for name in names})
    assert not left_out
    return Start.copy_of(SMALL.params(CPU.torch_device), grads), {contender.name: contender for contender in made}


def test_contenders_make_the_step_that_they_should() -> None:
    start, made = contenders()
    for contender in made.values():
        check_first_run(contender, start)


@pytest.mark.parametrize("name", ["mtadam-reference", "mtadam-cpu", "adam-on-sum", "published"])
def test_a_wrong_step_is_refused(name: str) -> None:
    start, made = contenders()
    before = [p.detach().clone() for p in made[name].params]

    def run() -> None:
        made[name].run()
        with torch.no_grad():
            for p, b in zip(made[name].params, before, strict=True):
                p += 0.01 * (p - b)  # the learning rate is off by 1 %

    with pytest.raises(TooFar, match=name):
        check_first_run(replace(made[name], run=run), start)


def break_contender(contender: Contender) -> Contender:
    """Return a contender that makes no step."""
    return replace(contender, run=lambda: None)


def test_a_wrong_contender_does_not_cost_the_others_their_case() -> None:
    start, made = contenders()
    right, why = check_contenders([break_contender(made["published"]), made["mtadam-cpu"], made["adam-on-sum"]], start)
    assert [contender.name for contender in right] == ["mtadam-cpu", "adam-on-sum"]
    assert why["published"].startswith("WRONG: published does not make the step")
    assert isinstance(why["published"], Failure)


def test_nothing_is_timed_where_ours_is_wrong() -> None:
    start, made = contenders()

    def refuse() -> None:
        raise ValueError("no kernel\nfor this")

    right, why = check_contenders(
        [break_contender(made["mtadam-cpu"]), replace(made["mtadam-reference"], run=refuse)], start
    )
    assert not right
    assert why["mtadam-reference"] == "FAILED: ValueError: no kernel"
    start, made = contenders()
    right, why = check_contenders([break_contender(made["mtadam-cpu"]), made["published"]], start)
    assert not right
    assert [isinstance(why[name], Failure) for name in ("mtadam-cpu", "published")] == [True, False]


def test_a_contender_that_cannot_be_made_fails_alone() -> None:
    def refuse(*_: object) -> Contender:
        raise ValueError("no kernel")

    _, made, left_out = make_contenders(SMALL, CPU, {"bad": Peer(refuse, lambda _: 0), "copy": STEP_PEERS["copy"]})
    assert [contender.name for contender in made] == ["copy"]
    assert left_out == {"bad": "FAILED: ValueError: no kernel"}
    assert isinstance(left_out["bad"], Failure)


def test_what_torch_compile_fails_on_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("cannot lower\nthis")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    case = Case("mnist", 2)
    with pytest.raises(LeftOutError, match=r"^torch\.compile failed: ValueError: cannot lower$"):
        make_compiled(case, CPU, case.grads(CPU.torch_device))


def test_a_graph_keeps_its_optimizer_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers: list[weakref.ref[MTAdam]] = []

    def made(*args: Any, **options: Any) -> MTAdam:
        optimizer = MTAdam(*args, **options)
        optimizers.append(weakref.ref(optimizer))
        return optimizer

    monkeypatch.setattr(making, "MTAdam", made)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(making, "capture_graph", contextlib.nullcontext)
    contender = make_graph("cpu", SMALL, CPU, SMALL.grads(CPU.torch_device))
    gc.collect()
    assert optimizers[0]() is not None
    assert contender.name == "mtadam-cpu-graph"
    del contender
    gc.collect()
    assert optimizers[0]() is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("terms", [2, 4, 10])
def test_contenders_with_a_rule_make_the_step_that_they_should(rule: str, terms: int) -> None:
    case = Case("small_300", terms, rule=rule)
    grads, made, _ = make_contenders(case, CPU, COMBINE_PEERS)
    start = Start.copy_of(case.params(CPU.torch_device), grads)
    assert {"combined-cpu", "combined-reference", "adam-on-sum"} <= {contender.name for contender in made}
    for contender in made:
        check_first_run(contender, start)
    gram = gram_matrix(grads)
    assert (gram < 0).sum() == terms * (terms - 1)  # all pairs conflict
    weights = RULES[rule].weights(gram)
    for faulty in (1.01 * weights, [1.01 * weights[0], *weights[1:]]):
        _, (again, *_), _ = make_contenders(case, CPU, {"combined-cpu": COMBINE_PEERS["combined-cpu"]})
        with pytest.raises(TooFar, match="combined-cpu"):
            check_first_run(replace(again, oracle=weighted_adam(list(faulty))), start)


def test_weights_of_least_norm() -> None:
    rng = np.random.default_rng(0)
    for terms in (2, 3, 4, 10):
        gram = np.cov(rng.standard_normal((terms, 20)), bias=True)
        products = gram @ mgda_weights(gram)
        weights = mgda_weights(gram)
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0
        assert products.min() == pytest.approx(weights @ products)  # no vertex is nearer: Frank and Wolfe's condition


def test_what_is_left_out_is_named() -> None:
    _, made, left_out = make_contenders(Case("decoder_1b", 10), CPU, STEP_PEERS)
    assert not made
    assert left_out.keys() == STEP_PEERS.keys()
    _, made, left_out = make_contenders(SMALL, CPU, STEP_PEERS)
    assert left_out.keys() == STEP_PEERS.keys() - {contender.name for contender in made}
    assert all(left_out.values())


class LikeAGpu(CpuDevice):
    """The limits and the memory of an H200, on the CPU."""

    slow_limit, loop_limit = CudaDevice.slow_limit, CudaDevice.loop_limit

    def free(self) -> int:
        return 139 * 2**30


def find_participants(case: Case, peers: dict[str, Peer], compile_seconds: int = 50) -> set[str]:
    """Return the contenders that a GPU's limits let in.

    Args:
        compile_seconds: for torch.compile, as in the last benchmarks of gpu_check.sh.
    """

    def make(name: str) -> Peer:
        return replace(peers[name], make=lambda *_: Contender(name, lambda: None))

    _, made, _ = make_contenders(case, LikeAGpu(compile_seconds), {name: make(name) for name in peers})
    return {contender.name for contender in made}


KERNELS = {"mtadam-cuda", "mtadam-cuda-one-launch", "mtadam-triton"}
GRAPHS = {f"{name}-graph" for name in KERNELS}
AGAINST_ADAM = KERNELS | {"copy", "adam-on-sum", "adam-k-times"}
BY_A_RULE = {"combined-cuda", "combined-triton", "copy", "adam-on-sum"}
# By case, who has to be measured there to tell whether a promise is kept.
NEEDED = {
    **{f"equal_100m-K{terms}": AGAINST_ADAM for terms in (2, 10)},
    **{f"bert_base-K{terms}-bf16": AGAINST_ADAM for terms in (2, 4, 10)},
    **{f"equal_20m-K4-{rule}": BY_A_RULE for rule in RULES},
    "equal_100m-K4": AGAINST_ADAM | {"published", "compiled"},
    "mnist-K10": AGAINST_ADAM | GRAPHS | {"published"},
    "small_300-K2": AGAINST_ADAM | GRAPHS,
    "small_300-K4": AGAINST_ADAM | GRAPHS,
    "small_300-K10": AGAINST_ADAM | GRAPHS,
}


def test_a_gpu_measures_first_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    no_grads: Grads = []
    monkeypatch.setattr(Case, "grads", lambda *_: no_grads)
    cases = test_step.CASES | test_combine.CASES
    in_turn = sorted(cases, key=lambda name: sort_key("combine" if cases[name].rule else "step", name))
    assert set(in_turn[: len(PROMISED)]) == set(PROMISED) == NEEDED.keys()
    for name, needed in NEEDED.items():
        assert find_participants(cases[name], COMBINE_PEERS if cases[name].rule else STEP_PEERS) >= needed, name
        assert "compiled" not in needed or (cases[name].workload, cases[name].terms) in COMPILED
    assert "compiled" in find_participants(cases["small_300-K2"], STEP_PEERS, compile_seconds=300)
    loops = {"published", "mtadam-reference", "compiled"}
    for name in ("small_300-K4", "tiny_1000-K2"):  # for these there is no time
        assert not loops & find_participants(cases[name], STEP_PEERS)


def test_first_steps_are_compared_in_full_precision_and_timed_as_is(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[bool] = []

    def make(params: list, losses: Losses, device: Device) -> Contender:
        made = make_mtadam(params, losses, device)

        def run() -> None:
            allowed.append(torch.backends.cudnn.allow_tf32)
            made.run()

        return replace(made, run=run)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    budget = Budget(least=2, most=2, seconds=0)
    outcome = measure_training("diabetes_quantiles", Suite(CPU, budget), {"mtadam": make}, {}, group="train")
    assert not outcome.left_out
    assert allowed == [False, True, True, True]


def test_records_go_to_json_and_back() -> None:
    _, made = contenders()
    times = take_turns(CPU, list(made.values()), Budget(least=3, most=3, seconds=0))
    assert all(len(samples) == 3 for samples in times.samples.values())
    count = count_elements(made["published"].params)
    moved = {name: contender.bytes_moved for name, contender in made.items()}
    case = {"group": "step", "workload": "small_300", "parameters": count, "tensors": 300, "terms": 3}
    record = make_records(times, moved, **case, dtype="float32")["mtadam-cpu"]
    assert record.faster_than.keys() == {"mtadam-reference", "adam-on-sum", "published"}
    assert record.gb_per_second == pytest.approx((16 * 3 + 16) * count / record.seconds.median / 1e9)
    assert Record.from_info(asdict(record)) == record


def test_ratios_are_taken_turn_by_turn() -> None:
    assert speedup([1.0, 2.0, 4.0], than=[3.0, 6.0, 12.0]).median == 3.0
    assert speedup([1.0, 2.0, 4.0], than=[1.0, 6.0, 8.0]).low == 1.5
