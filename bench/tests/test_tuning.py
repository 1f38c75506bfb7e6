"""The sweep of constants on the CPU, and the counters of a stand-in for ncu."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.harness.devices import Callback, CpuDevice, Sample
from bench.harness.measure import Budget
from bench.tuning import counters, sweep
from bench.tuning.sweep import CHUNKS, WINDOWS, Setting, measure
from bench.workloads.shapes import Case
from mtadam_fused.backends import cuda, device
from oracles.tolerances import TooFar

SHORT = Budget(least=2, most=2, seconds=0)


def test_a_setting_changes_the_constants_while_it_is_applied() -> None:
    rows, before = torch.tensor([0, 0, 1, 1]), cuda.AHEAD_ELEMENTS
    with WINDOWS["one launch, 2^23, ascending"].applied():
        assert cuda.AHEAD_ELEMENTS == 2**23
        assert cuda.launch_order(rows, 9).tolist() == [0, 1, 2, 3, ~0, ~1, ~2, ~3]
    assert before == cuda.AHEAD_ELEMENTS
    assert cuda.launch_order(rows, 9).tolist() == [0, 1, 2, 3, ~1, ~0, ~3, ~2]
    with CHUNKS["ENOUGH_CHUNKS = 256"].applied():
        assert device.chunk_elements(2_000_000) == 4096
    assert device.chunk_elements(2_000_000) == 1024


def test_settings_are_timed_in_turns_and_have_their_constants_in_the_first_step() -> None:
    module = SimpleNamespace(value=1)
    seen: list[int] = []

    class Watched(CpuDevice):
        def time(self, prepare: Callback, run: Callback) -> Sample:
            seen.append(module.value)
            return super().time(prepare, run)

    settings = {"one": Setting("cpu"), "other": Setting("cpu", module, {"value": 2})}
    first, second = measure(Case("mnist", 2), settings, Watched(), SHORT)
    assert (first["setting"], second["setting"]) == ("one", "other")
    assert first["times as fast as one"] == "1"
    assert float(second["ms"]) > 0
    assert set(seen) == {1}  # as it was before, in the timed steps


def test_a_setting_that_makes_a_wrong_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object) -> None:
        raise TooFar("wrong")

    monkeypatch.setattr(sweep, "check_first_run", wrong)
    with pytest.raises(TooFar, match="wrong"):
        measure(Case("mnist", 2), {"one": Setting("cpu")}, CpuDevice(), SHORT)


HEADER = '"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
# Writes its CSV where --log-file says.
NCU = """#!/usr/bin/env bash
while [[ $1 != --log-file ]]; do shift; done
cat "$CSV" >"$2"
echo "$SAYS"
exit "$STATUS"
"""


class Ncu:
    """The command with a stand-in for ncu: its exit status, and what it printed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capsys = folder, capsys
        (folder / "ncu").write_text(NCU)
        (folder / "ncu").chmod(0o755)
        self._set = monkeypatch.setenv
        self._set("PATH", f"{folder}:{os.environ['PATH']}")
        self._set("CSV", str(folder / "csv"))

    def run(self, csv: list[str], says: str = "", status: int = 0) -> tuple[object, list[str]]:
        (self._folder / "csv").write_text("\n".join(csv) + "\n")
        self._set("SAYS", says)
        self._set("STATUS", str(status))
        code: object = 0
        try:
            counters.main()
        except SystemExit as ended:
            code = ended.code
        return code, self._capsys.readouterr().out.splitlines()


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ncu:
    return Ncu(tmp_path, monkeypatch, capsys)


def line(launch: int, kernel: str, metric: str, value: str) -> str:
    return f'"{launch}","7","{kernel}_kernel","Command line profiler metrics","{metric}","byte","{value}"'


def test_counters_are_shown_by_kernel_and_case(ncu: Ncu) -> None:
    csv = ["==PROF== Connected to process 7", HEADER]
    for number, kernel in enumerate([*counters.KERNELS, *counters.KERNELS]):
        csv.append(line(number, kernel, "gpu__time_duration.sum", f"{number + 1},500"))
        csv.append(line(number, kernel, "dram__bytes_read.sum", "408,200,000"))
        csv.append(line(number, kernel, "lts__t_sector_op_read_hit_rate.pct", "N/A"))
    code, shown = ncu.run(csv)
    assert code == 0
    assert shown[0] == "| kernel | case | us | MB read | % L2 hits of reads |"
    assert shown[2] == "| term_norms | resnet50-K4 | 1.5 | 408 | N/A |"
    assert shown[-1] == "| term_gram | resnet50-K4-bf16 | 8.5 | 408 | N/A |"


def test_a_launch_too_many_is_shown_without_a_case(ncu: Ncu) -> None:
    _, shown = ncu.run([HEADER, *(line(n, "term_gram", "gpu__time_duration.sum", "1000") for n in range(3))])
    assert [row.split("|")[2].strip() for row in shown[2:]] == ["0", "1", "2"]


OF_NCU = ("==ERROR== ERR_NVGPUCTRPERM - no permission", "==ERROR== Failed to initialize the profiler")
OF_THE_PROGRAM = f"==ERROR== {counters.OF_THE_PROGRAM} (1)."


@pytest.mark.parametrize(
    ("csv", "status", "says", "code", "told"),
    [
        ([OF_NCU[0]], 0, "", counters.NOTHING_COUNTED, OF_NCU[0]),
        ([], 1, OF_NCU[1], counters.NOTHING_COUNTED, OF_NCU[1]),
        ([OF_THE_PROGRAM], 1, OF_NCU[1], counters.NOTHING_COUNTED, OF_NCU[1]),  # which made it fail
        (["==WARNING== No kernels were profiled."], 0, "", counters.NOTHING_COUNTED, "ncu counted nothing"),
        (["==WARNING== No kernels were profiled."], 1, OF_THE_PROGRAM, 1, OF_THE_PROGRAM),
        ([HEADER, line(0, "term_gram", "gpu__time_duration.sum", "1")], 1, OF_THE_PROGRAM, 1, OF_THE_PROGRAM),
    ],
)
def test_a_refusal_is_told_and_a_failing_program_is_a_failure(
    csv: list[str], status: int, says: str, code: int, told: str, ncu: Ncu
) -> None:
    ended, shown = ncu.run(csv, says, status)
    assert (ended, shown[-1]) == (code, told)


def test_without_ncu_nothing_is_counted(ncu: Ncu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert ncu.run([]) == (counters.NOTHING_COUNTED, ["no ncu on PATH"])
