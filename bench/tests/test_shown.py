"""What the benchmarks show while they run and at the end: progress, ten lines, and whether the machine was busy."""

import io
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.harness import other_load, progress
from bench.harness.devices import Sample
from bench.harness.measure import Times
from bench.harness.other_load import OtherLoad, busy_seconds, cpu_count, warn_after, warn_before
from bench.harness.progress import Progress
from bench.harness.records import Record, make_records
from bench.report.headlines import (
    LINES,
    gan_sentences,
    headlines,
    say_faster,
    say_ratio,
    speed_table,
    training_sentences,
)
from bench.report.tables import all_tables, limit_rows


def make(group: str, workload: str, terms: int, seconds: dict[str, float], rule: str = "") -> list[Record]:
    """Make the records of a case whose contenders took so long."""
    times = Times({name: [Sample(device=x, host=x)] * 2 for name, x in seconds.items()})
    case = {"group": group, "workload": workload, "parameters": 1, "tensors": 1, "dtype": "float32", "rule": rule}
    return list(make_records(times, {}, terms=terms, **case).values())


# -- ten lines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.404, "1.4 times as fast as it"),
        (12.34, "12 times as fast as it"),
        (1.04, "as fast as it"),
        (0.96, "as fast as it"),
        (0.5, "2.0 times as long as it"),
    ],
)
def test_ratios_in_words(ratio: float, said: str) -> None:
    assert say_ratio(ratio, "it") == said


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(1.404, "1.4 times faster"), (0.142, "7.0 times slower"), (0.04, "25 times slower"), (1.02, "as fast")],
)
def test_speed_in_words(ratio: float, said: str) -> None:
    assert say_faster(ratio) == said


def test_speed_table_shows_one_case_the_worst_and_the_best() -> None:
    records = [
        *make("step", "resnet50", 4, {"mtadam-cpu": 1.0, "balanced-cpu": 2.0, "adam-k-times": 1.5, "adam-on-sum": 1.0}),
        *make("step", "mnist", 2, {"mtadam-cpu": 4.0, "adam-k-times": 2.0}),
        *make("step", "mnist", 10, {"mtadam-cpu": 1.0, "mtadam-reference": 9.0, "adam-k-times": 8.0}),
        *make("combine", "resnet50", 4, {"combined-cpu": 1.0, "torchjd": 9.0}, rule="MGDA"),
    ]
    times, one = speed_table(records).splitlines()[2:]
    assert times.endswith(
        "| 1.5 times faster (resnet50, K = 4) | 2.0 times slower (mnist, K = 2) | 8.0 times faster (mnist, K = 10) |"
    )
    assert one.count("2.0 times slower (resnet50, K = 4)") == 3
    assert speed_table([]) == ""


def test_training_steps_in_words() -> None:
    records = make("train", "digits", 10, {"mtadam": 3.0, "adam-on-sum": 1.0})
    records += make("train", "diabetes", 2, {"mtadam": 3.0, "adam-on-sum": 2.0})
    ours = "3.0 times slower (digits, K = 10) to 1.5 times slower (diabetes, K = 2)"
    assert f"`MTAdam`'s are {ours} than Adam's on the sum" in training_sentences(records)
    assert training_sentences([]) == ""


def test_a_line_compares_with_the_peer_that_tells_most() -> None:
    seconds = {"mtadam-cpu": 0.002, "mtadam-reference": 0.009, "adam-k-times": 0.003, "published": 0.02, "copy": 1.0}
    (line,) = headlines(make("step", "srresnet", 2, seconds)).splitlines()
    assert line == "MTAdam  srresnet, K = 2  2 ms a step, 1.5 times as fast as 2 fused Adam steps"
    del seconds["adam-k-times"]
    assert headlines(make("step", "srresnet", 2, seconds)).endswith("10 times as fast as the published loop")
    assert headlines(make("step", "mnist", 10, {"mtadam-cpu": 0.002})).endswith("2 ms a step")


def test_at_most_ten_lines_the_most_telling_first() -> None:
    many = [r for k in range(2, 20) for r in make("step", "vit_b16", k, {"mtadam-cpu": 1.0, "balanced-cpu": 1.0})]
    gan = make("gan", "dcgan_4", 3, {"balanced-inputs": 0.02, "balanced-all": 0.03, "adam-on-sum": 0.01})
    rule = make("one-pass", "shared_trunk", 8, {"rule-features": 0.1, "rule-per-term": 0.3}, rule="MGDA")
    lines = headlines([*many, *rule, *gan]).splitlines()
    assert len(lines) == LINES == 10
    assert re.match("BalancedAdam +dcgan_4, K = 3 +20 ms a generator's step, 1.5 times as fast as without", lines[0])
    assert lines[1].startswith("RuleWeighting(MGDA)")
    assert sum("shared_trunk" in line for line in lines) == 1
    assert headlines([]) == ""


def test_sentences_on_gans() -> None:
    of_one = make("gan", "dcgan", 3, {"balanced-inputs": 0.02, "balanced-all": 0.03})
    assert gan_sentences(of_one) == (
        "With one discriminator a generator's step of 3 terms takes 20 ms instead of 30 ms: it is 1.5 times as fast."
    )
    assert gan_sentences([]) == ""


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_step_beside_what_memory_allows() -> None:
    seconds = {"mtadam-cpu": 1.0, "adam-on-sum": 0.5, "read": 0.25}
    times = Times({name: [Sample(device=x, host=x)] * 2 for name, x in seconds.items()})
    # 80 bytes an element, of which 56 are read, in a second; Adam's 28 in half of one; a sum's 40 in a quarter.
    moved: dict[str, float | None] = {"mtadam-cpu": 80e9, "adam-on-sum": 28e9, "read": 40e9}
    case: dict[str, Any] = {
        "group": "limit",
        "workload": "equal_40",
        "parameters": 1,
        "tensors": 1,
        "dtype": "float32",
        "terms": 4,
    }
    (row,) = limit_rows(list(make_records(times, moved, **case).values()))
    shown = [row[name] for name in ("x one Adam's GB/s", "reads GB/s", "a sum reads GB/s", "x what a sum reads")]
    assert shown == ["1.43", "56", "160", "0.35"]
    (row,) = limit_rows(list(make_records(times, moved | {"adam-on-sum": None}, **case).values()))
    assert row["x one Adam's GB/s"] == ""


def test_taking_gradients_is_shown_beside_setting_them_alone() -> None:
    records = make("gradients", "mnist", 4, {"mtadam": 0.008, "set-grad": 0.002})
    (line,) = all_tables(records)["Host's time of taking the gradients, before a step"].splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["8", "2"]
    (line,) = all_tables(make("gradients", "mnist", 4, {"mtadam": 0.008})).popitem()[1].splitlines()[2:]
    assert line.endswith("| 8 |")


# -- progress ----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Stand in for a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_line_with_the_name_of_the_case() -> None:
    pytest.importorskip("tqdm")
    terminal, lines = Terminal(), list[str]()
    bar = Progress(2, terminal, lines.append)
    for case in ("step first", "step first", "step second"):
        bar.begin(case)
    shown = terminal.getvalue().split("\r")
    bar.close()
    assert not lines
    assert [text.strip()[:3] for text in shown if "step first" in text] == ["0/2"]
    assert "1/2" in next(text for text in shown if "step second" in text)
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-2].strip() == ""  # removed


def test_without_a_terminal_a_line_is_printed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "EVERY", 3600.0)
    seldom = Progress(3, io.StringIO(), lines.append)
    for case in ("a", "a", "b", "c"):
        seldom.begin(case)
    assert lines == ["1 of 3 cases: a"]
    monkeypatch.setattr(progress, "EVERY", 0.0)
    seldom.begin("d")
    assert lines[1:] == ["4 of 3 cases: d"]
    seldom.close()


# -- a busy machine ----------------------------------------------------------------------------------------------------


def write_stat(path: Path, *hundredths: int) -> None:
    path.write_text(f"cpu  {' '.join(map(str, hundredths))}\ncpu0 1 2 3 4 5 6 7 8 9 10\n")


def test_all_kinds_of_work_count_and_no_kind_of_waiting(tmp_path: Path) -> None:
    write_stat(tmp_path / "stat", 100, 200, 300, 10**6, 10**6, 400, 500, 600, 50, 60)  # the last two are in the first
    assert busy_seconds(tmp_path / "stat") == pytest.approx(21.0)
    assert busy_seconds(tmp_path / "missing") is None


@pytest.mark.parametrize(("others", "cpus"), [(0.0, 0.0), (-0.01, 0.0), (0.3, 0.2), (3.0, 2.0)])
def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch, others: float, cpus: float) -> None:
    """We work for 2.7 seconds within 1.5, on two CPUs. Rounded to hundredths, all work may seem less than ours."""
    clocks = SimpleNamespace(perf_counter=lambda: 10.0, process_time=lambda: 20.0)
    monkeypatch.setattr(other_load, "time", clocks)
    monkeypatch.setattr(other_load, "busy_seconds", lambda: 30.0)
    load = OtherLoad()
    clocks.perf_counter, clocks.process_time = lambda: 11.5, lambda: 22.7
    monkeypatch.setattr(other_load, "busy_seconds", lambda: 32.7 + others)
    assert load.cpus() == pytest.approx(cpus)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_another_process_is_seen() -> None:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        load = OtherLoad()
        time.sleep(1.0)
        cpus = load.cpus()
    finally:
        other.kill()
        other.wait()
    assert cpus is not None
    assert 0.2 < cpus <= cpu_count() + 0.1  # it may have to share its CPU


def test_too_short_a_time_says_nothing() -> None:
    assert OtherLoad().cpus() is None


def test_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_load.os, "cpu_count", lambda: 4)
    assert warn_before(None) == warn_before(0.3) == warn_after([None, 0.3]) == warn_after([]) == ""
    assert warn_before(1.25).startswith("THE MACHINE IS BUSY: others use 1.2 of its 4 CPUs (load average ")
    said = warn_after([None, 0.1, 0.5, 2.0])
    assert said.startswith("THE MACHINE WAS BUSY in 2 of 4 cases: others used up to 2.0 of its 4 CPUs. ")


def test_records_say_how_busy_the_machine_was() -> None:
    times = Times({"copy": [Sample(1.0, 1.0)] * 2}, other_cpus=0.7)
    case = {"group": "step", "workload": "mnist", "parameters": 1, "tensors": 1, "dtype": "float32", "terms": 2}
    assert make_records(times, {}, **case)["copy"].other_cpus == 0.7
