"""The benchmarks run, and leave records that tables and pictures can be made of; a GPU is timed as it should be."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.harness.devices import CpuDevice, CudaDevice, Sample, capture_graph, select_device
from bench.harness.measure import QUICK, Failure, Times
from bench.harness.records import Record, load, make_records
from bench.harness.suite import Outcome, Suite
from bench.report.pages import describe_machine, write
from bench.report.plots import HERO, PICTURES, bytes_held, draw_hero, without_slower_backends
from bench.report.tables import all_tables, short_tables

ROOT = Path(__file__).parents[2]
CPU = CpuDevice().slug


def run_benchmarks(out: Path, chosen: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run briefly and record in ``out``, not as a worker of this run. Other load on the machine costs threads most."""
    short = ["--quick", "--device", "cpu", "--seconds", "0.01", "--record", str(out), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "bench/speed", *short, "-k", chosen, *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the records of a short run."""
    out = tmp_path_factory.mktemp("records")
    run = run_benchmarks(out, "srresnet-K2 or diabetes or PCGrad")
    assert run.returncode == 0, run.stdout + run.stderr
    for shown in (
        "MTAdam +srresnet, K = 2 .* 2 fused Adam steps",
        "diabetes_quantiles.* ms a training step",
        "1 of . cases: ",
    ):
        assert re.search(shown, run.stdout), run.stdout
    return out / CPU


def test_json_is_pytest_benchmarks_own(folder: Path) -> None:
    saved = json.loads((folder / "benchmarks.json").read_text())
    benchmark = next(b for b in saved["benchmarks"] if b["name"] == "test_step[srresnet-K2-mtadam-cpu]")
    assert benchmark["stats"]["median"] == pytest.approx(benchmark["extra_info"]["seconds"]["median"])
    assert len(benchmark["stats"]["data"]) >= QUICK.least
    assert "node" not in saved["machine_info"]


def test_records(folder: Path) -> None:
    run = load(folder / "benchmarks.json")
    assert {r.contender for r in run.records if r.group == "train"} == {"mtadam", "published", "adam-on-sum"}
    mine = next(r for r in run.records if r.contender == "mtadam-cpu")
    ours = {"mtadam-reference", "balanced-cpu", "balanced-reference"}
    assert mine.faster_than.keys() == {*ours, "adam-on-sum", "adam-k-times", "published"}
    combined = next(r for r in run.records if r.contender == "combined-cpu")
    assert (combined.workload, combined.rule, combined.terms) == ("mnist", "PCGrad", 2)
    peers = {r.contender for r in run.records} | {entry.contender for entry in run.left_out}
    assert peers >= {"torchjd", "torchjd-layerwise"}  # timed, or named where it is not installed
    assert ("torchjd" in combined.faster_than) == (find_spec("torchjd") is not None)
    assert {entry.contender for entry in run.left_out} >= {"mtadam-cuda", "mtadam-cuda-graph", "compiled"}
    with (folder / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(run.records)
    assert {"commit", "cpu_model", "threads", "torch", "triton", "faster_than published"} <= rows[0].keys()


def test_report(folder: Path) -> None:
    write(folder)
    table = (folder / "table.md").read_text()
    assert "| srresnet (1.55 M) | 2 |" in table
    assert "| mnist (1.2 M) | PCGrad | 2 |" in table
    assert "times faster" in (folder / "speed.md").read_text()
    page = (folder / "README.md").read_text()
    assert "mtadam-cuda-graph: backend 'cuda' cannot be used" in page
    for picture in PICTURES.keys() - {"hero.png"}:  # that is of another workload
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
        assert f"]({picture})" in page


def test_the_hero_draws_what_was_measured(tmp_path: Path) -> None:
    step = make_timed_records({"mtadam-cpu": 3.0, "mtadam-reference": 5.0, "adam-on-sum": 1.0, "published": 9.0}, 2)
    records = [replace(r, workload=HERO) for r in step]
    records += [replace(r, group="memory", state_bytes=8.0, peak_bytes=1.0) for r in records]
    draw_hero(records, tmp_path / "hero.png")
    assert (tmp_path / "hero.png").read_bytes().startswith(b"\x89PNG")
    assert [bytes_held(r) for r in records[-4:]] == [17.0, 17.0, 13.0, 17.0]
    assert {r.contender for r in without_slower_backends(records[:4])} == {"mtadam-cpu", "adam-on-sum", "published"}


def test_quick_cases_begin_with_one_of_each_group(tmp_path: Path) -> None:
    """The time may not suffice for all of them."""
    run = run_benchmarks(tmp_path, "", "--collect-only")
    found = re.findall(r"^bench/speed/test_(\w+)\.py::\w+\[(.+)\]$", run.stdout, re.MULTILINE)
    modules = [module for module, _ in found]
    order = list(dict.fromkeys(modules))
    assert set(order) == {path.stem.removeprefix("test_") for path in (ROOT / "bench/speed").glob("test_*.py")}
    changes = [module for module, before in zip(modules, [None, *modules], strict=False) if module != before]
    assert changes[: len(order)] == order  # each once before any comes again
    assert changes.count("step") > 1
    assert any(name.startswith("resnet50-K4-") for module, name in found if module == "step")


def test_a_group_is_recorded_anew_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / CPU)
    before = load(folder / "benchmarks.json")
    run = run_benchmarks(tmp_path, "train and diabetes and not combine", "--keep-others", MTADAM_FUSED_COMMIT="0123abc")
    assert run.returncode == 0, run.stdout + run.stderr
    after = load(tmp_path / CPU / "benchmarks.json")

    def of(records: list[Record], trained: bool) -> list[Record]:
        found = [record for record in records if (record.group == "train") == trained]
        return sorted(found, key=lambda record: (record.group, record.contender))

    assert of(after.records, trained=False) == of(before.records, trained=False) != []
    new, old = of(after.records, trained=True), of(before.records, trained=True)
    assert [r.contender for r in new] == [r.contender for r in old]
    assert new != old
    assert (after.commit, after.added.keys()) == (before.commit, {"train"})
    assert after.added["train"].startswith("commit 0123abc, ")
    assert f"train: {after.added['train']}." in describe_machine(after)


def test_a_group_is_not_added_to_a_record_of_another_machine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / CPU).mkdir()
    saved = json.loads((folder / "benchmarks.json").read_text())
    saved["machine_info"] |= {"cpu_model": "another"}
    (tmp_path / CPU / "benchmarks.json").write_text(json.dumps(saved))
    run = run_benchmarks(tmp_path, "diabetes", "--keep-others", "--collect-only")
    assert run.returncode == 4
    assert "was recorded with another cpu_model; record all groups" in run.stderr


def test_a_run_that_is_cut_short_leaves_the_cases_before(tmp_path: Path) -> None:
    plugin = "import os\n\ndef pytest_runtest_setup(item):\n    'srresnet-K2' in item.name and os._exit(9)\n"
    (tmp_path / "ends_at_once.py").write_text(plugin)
    paths = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    run = run_benchmarks(tmp_path, "srresnet", "-p", "ends_at_once", PYTHONPATH=paths, MTADAM_FUSED_COMMIT="0123abc")
    assert run.returncode == 9
    left = load(tmp_path / CPU / "benchmarks.json")
    assert left.commit == "0123abc"
    assert {(r.workload, r.terms) for r in left.records} == {("srresnet", 4)}
    assert {"mtadam-cpu", "published"} <= {r.contender for r in left.records}
    assert len((tmp_path / CPU / "records.csv").read_text().splitlines()) == 1 + len(left.records)


def fake_request(contender: str) -> Any:
    """Stand in for pytest's request, of a contender's benchmark."""
    return SimpleNamespace(
        node=SimpleNamespace(callspec=SimpleNamespace(params={"case": "some", "contender": contender})),
        module=SimpleNamespace(GROUP="step"),
    )


def test_a_failure_fails_its_contender_and_what_is_left_out_is_skipped() -> None:
    suite = Suite(CpuDevice(), QUICK)
    outcome = Outcome(left_out={"bad": Failure("WRONG: by 1"), "slow": "too slow here"})
    with pytest.raises(pytest.fail.Exception, match="WRONG: by 1"):
        suite.report(fake_request("bad"), lambda *_: outcome)
    with pytest.raises(pytest.skip.Exception, match="too slow here"):
        suite.report(fake_request("slow"), lambda *_: outcome)
    assert [entry.reason for entry in suite.left_out] == ["WRONG: by 1", "too slow here"]


def test_no_case_begins_when_no_time_is_left() -> None:
    begun: list[str] = []

    def measure(case: str, _: Suite) -> Outcome:
        begun.append(case)
        return Outcome(left_out={"one": "known", "other": "known"})

    suite = Suite(CpuDevice(), QUICK, within=0)
    for contender in ("one", "other"):
        with pytest.raises(pytest.skip.Exception, match="no time was left"):
            suite.report(fake_request(contender), measure)
    assert not begun
    assert suite.cases_left_out_for_time() == ["step some"]
    with pytest.raises(pytest.skip.Exception, match="known"):
        Suite(CpuDevice(), QUICK).report(fake_request("one"), measure)
    assert begun


def make_timed_records(seconds: dict[str, float], terms: int) -> list[Record]:
    """Make records of contenders that took so long, in a step of BERT."""
    times = Times({name: [Sample(device=x, host=x / 2)] * 2 for name, x in seconds.items()})
    case = {"group": "step", "workload": "bert_base", "parameters": 1, "tensors": 1, "dtype": "float32"}
    return list(make_records(times, {}, terms=terms, **case).values())


def test_tables_compare_with_triton_and_do_not_depend_on_the_order_of_measuring() -> None:
    seconds = {"mtadam-cuda": 1.0, "mtadam-triton": 2.0, "mtadam-cuda-graph": 0.5, "mtadam-triton-graph": 2.0}
    two, four = make_timed_records(seconds, 2), make_timed_records(seconds, 4)
    table = all_tables([*four, *two])["Step: times as fast as"]
    assert table == all_tables([*two, *four])["Step: times as fast as"]
    rows = [[cell.strip() for cell in line.split("|")[3:6]] for line in table.splitlines()]
    assert rows[0] == ["K", "backend", "Triton"]
    assert rows[2:6] == [["2", "cuda", "2"], ["2", "triton", ""], ["2", "cuda-graph", "4"], ["2", "triton-graph", ""]]
    assert short_tables(two).count("bert_base") == 1  # the fastest that is launched eagerly


def test_tables_compare_balanced_adam_with_mtadam() -> None:
    records = make_timed_records({"mtadam-cpu": 3.0, "balanced-cpu": 2.0, "adam-k-times": 8.0}, 2)
    of_mtadam, of_balanced = short_tables(records).split("\n\n")
    assert [cell.strip() for cell in of_balanced.splitlines()[-1].split("|")[-3:-1]] == ["4", "1.5"]
    assert "| MTAdam |" not in of_mtadam.splitlines()[0]
    assert [line.split("|")[1].strip() for line in (of_mtadam + of_balanced).splitlines()[2::3]]


class Event:
    """Stand in for a CUDA event."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: the event has happened."""

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


def test_cuda_timing_by_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    monkeypatch.setattr(CudaDevice, "torch_device", torch.device("cpu"))
    stand_ins = {
        "Event": Event,
        "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=1024),
        "get_device_name": lambda _: "NVIDIA H200",
        "synchronize": lambda _: None,
        "_sleep": slept.append,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _: (1000, 2000),
        "memory_reserved": lambda _: 130,
        "memory_allocated": lambda _: 100,
        "max_memory_allocated": lambda _: 140,
        "reset_peak_memory_stats": lambda _: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    device = CudaDevice()
    calls: list[str] = []

    def run() -> None:
        calls.append("run")
        time.sleep(0.002)

    sample = device.time(lambda: calls.append("prepare"), run)
    assert calls == ["prepare", "run", "prepare", "run"]
    assert sample.device >= 0.002
    assert sample.host >= 0.002
    assert slept[0] >= 2e9 * 0.004  # cycles: longer than the host takes
    assert device.slug == "nvidia-h200"
    assert device.facts()["gpu"] == "NVIDIA H200"
    assert device.peak(run) == 40
    assert device.free() == 1030


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = ["default"]

    @contextmanager
    def fails_at_its_end(graph: object) -> Iterator[None]:
        streams.append("of captures")
        yield
        raise RuntimeError("capture invalidated")

    monkeypatch.setattr(torch.cuda, "graph", fails_at_its_end)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    with pytest.raises(RuntimeError, match="capture invalidated"), capture_graph(graph=None):  # type: ignore[arg-type]
        pass
    assert streams[-1] == "default"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_seen() -> None:
    peak = CpuDevice().peak(lambda: torch.ones(20_000_000))
    if peak is None:
        pytest.skip("this system does not let a process reset its peak memory")
    assert 0.9 * 80e6 < peak < 1.2 * 80e6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(pytest.UsageError, match="torch sees no CUDA device; use --device cpu"):
        select_device("cuda", compile_seconds=1)
