"""The benchmarks run, and leave records that tables and pictures can be made of; a GPU is timed as it should be."""

import csv
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from devices import CpuDevice, CudaDevice
from records import load
from report import write

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of a short run."""
    out = tmp_path_factory.mktemp("records")
    options = ["--quick", "--device", "cpu", "--seconds", "0.01", "--record", str(out)]
    chosen = ["-k", "srresnet-K2 or diabetes or PCGrad"]
    command = [sys.executable, "-m", "pytest", "bench", "-p", "no:cacheprovider", *options, *chosen]
    # A run of its own, not a worker of this one; what else the machine does costs threads most.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    for shown in ("Speed of a step", "Whole training step", "Weights by a rule", "mtadam-cuda: backend 'cuda' cannot"):
        assert shown in run.stdout
    return out / "cpu"


def test_json_is_pytest_benchmarks_own(folder: Path) -> None:
    saved = json.loads((folder / "benchmarks.json").read_text())
    benchmark = next(b for b in saved["benchmarks"] if b["name"] == "test_step[srresnet-K2-mtadam-cpu]")
    assert benchmark["stats"]["median"] == pytest.approx(benchmark["extra_info"]["seconds"]["median"])
    assert len(benchmark["stats"]["data"]) >= 5
    assert "node" not in saved["machine_info"]


def test_records(folder: Path) -> None:
    run = load(folder / "benchmarks.json")
    assert {r.contender for r in run.records if r.group == "train"} == {"mtadam", "published", "adam-on-sum"}
    mine = next(r for r in run.records if r.contender == "mtadam-cpu")
    assert mine.faster_than.keys() == {"mtadam-reference", "adam-on-sum", "adam-k-times", "published"}
    combined = next(r for r in run.records if r.contender == "combined-cpu")
    assert (combined.workload, combined.rule, combined.terms) == ("mnist", "PCGrad", 2)
    peers = {r.contender for r in run.records} | {entry.contender for entry in run.left_out}
    assert peers >= {"torchjd", "torchjd-layerwise"}  # timed, or named where it is not installed
    assert ("torchjd" in combined.faster_than) == (find_spec("torchjd") is not None)
    assert {entry.contender for entry in run.left_out} >= {"mtadam-cuda", "mtadam-graph", "compiled"}
    with (folder / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(run.records)
    assert {"commit", "cpu_model", "threads", "torch", "triton", "faster_than published"} <= rows[0].keys()


def test_report(folder: Path) -> None:
    write(folder)
    table = (folder / "table.md").read_text()
    assert "| srresnet (1.55 M) | 2 |" in table
    assert "| mnist (1.2 M) | PCGrad | 2 |" in table
    page = (folder / "README.md").read_text()
    assert "mtadam-graph: CUDA graphs need a GPU" in page
    for picture in ("bandwidth.png", "peers.png", "times.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
        assert f"]({picture})" in page


class Event:
    """Stands in for a CUDA event."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Has happened."""

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


def test_cuda_timing_by_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    monkeypatch.setattr(CudaDevice, "place", torch.device("cpu"))
    stand_ins = {
        "Event": Event,
        "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=1024),
        "get_device_name": lambda _: "NVIDIA H200",
        "synchronize": lambda _: None,
        "_sleep": slept.append,
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_seen() -> None:
    peak = CpuDevice().peak(lambda: torch.ones(20_000_000))
    if peak is None:
        pytest.skip("this system does not let a process reset its peak memory")
    assert 0.9 * 80e6 < peak < 1.2 * 80e6
