"""Options, the device, the order of cases, what is recorded, and what is shown."""

import json
import math
import os
import sys
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.harness.devices import COMPILE_SECONDS, select_device
from bench.harness.measure import FULL, QUICK
from bench.harness.other_load import look_at_others, warn_after, warn_before
from bench.harness.progress import Progress
from bench.harness.records import JSON_NAME, differing_facts, merge, write
from bench.harness.suite import Suite, sort_key
from bench.report.headlines import headlines
from bench.report.tables import summary

QUICK_SECONDS = 45.0  # for --quick: the last case takes some more, and starting a few
_SUITE = pytest.StashKey[Suite]()
_BEFORE = pytest.StashKey[dict[str, Any]]()  # the record whose other groups are kept
_PROGRESS = pytest.StashKey[Progress]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what to benchmark")
    parser.addoption("--quick", action="store_true", help="the smaller cases only, and fewer turns")
    parser.addoption("--seconds", type=float, help="how long the contenders of a case take turns, at least some")
    parser.addoption(
        "--within", type=float, metavar="SECONDS", help="leave out the cases not begun by then; 45 with --quick"
    )
    parser.addoption(
        "--compile-seconds", type=int, default=COMPILE_SECONDS, help="what torch.compile may take for a contender"
    )
    parser.addoption("--record", type=Path, metavar="FOLDER", help="write JSON and CSV into FOLDER/<machine>")
    parser.addoption(
        "--keep-others", action="store_true", help="with --record: keep that record's groups that are not measured now"
    )


def pytest_configure(config: pytest.Config) -> None:
    device = select_device(config.getoption("--device"), config.getoption("--compile-seconds"))
    budget, within = (QUICK, QUICK_SECONDS) if config.getoption("--quick") else (FULL, math.inf)
    if seconds := config.getoption("--seconds"):
        budget = replace(budget, seconds=seconds)
    if (asked := config.getoption("--within")) is not None:
        within = asked
    config.stash[_SUITE] = Suite(device, budget, within)
    if folder := config.getoption("--record"):
        (folder / device.slug).mkdir(parents=True, exist_ok=True)
        if config.getoption("--keep-others"):
            config.stash[_BEFORE] = load_earlier(folder / device.slug / JSON_NAME, device.facts())


def load_earlier(path: Path, facts: dict[str, object]) -> dict[str, Any]:
    """Read the record whose other groups are kept.

    Raises:
        pytest.UsageError: there is none, or it is of another machine or software.
    """
    if not path.exists():
        raise pytest.UsageError(f"--keep-others: there is no {path}; record all groups first")
    before = json.loads(path.read_text())
    if differing := differing_facts(before, facts):
        raise pytest.UsageError(
            f"--keep-others: {path} was recorded with another {', '.join(differing)}; record all groups"
        )
    return before


@pytest.fixture
def suite(pytestconfig: pytest.Config) -> Suite:
    return pytestconfig.stash[_SUITE]


def is_benchmark(item: pytest.Item) -> bool:
    """Return whether it is one, or a test collected beside them by ``pytest bench``."""
    return Path(__file__).parent in item.path.parents


def group_and_case(item: pytest.Item) -> tuple[str, str]:
    return item.module.GROUP, item.callspec.params["case"]  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the benchmarks; with --quick, keep those that their modules call quick, in another order."""
    benchmarks = [item for item in items if is_benchmark(item)]
    benchmarks.sort(key=lambda item: sort_key(*group_and_case(item)))
    if config.getoption("--quick"):
        benchmarks = keep_quick(config, benchmarks)
    items[:] = [item for item in items if not is_benchmark(item)] + benchmarks


def keep_quick(config: pytest.Config, benchmarks: list[pytest.Item]) -> list[pytest.Item]:
    """Deselect the benchmarks that their modules do not call quick, and return the others.

    Each group's first case comes before any group's second, for the time may not suffice for all.
    """

    def place(item: pytest.Item) -> int:
        quick, (_, case) = item.module.QUICK_CASES, group_and_case(item)  # type: ignore[attr-defined]
        return quick.index(case) if case in quick else -1

    config.hook.pytest_deselected(items=[item for item in benchmarks if place(item) < 0])
    return sorted((item for item in benchmarks if place(item) >= 0), key=place)


# -- records -----------------------------------------------------------------------------------------------------------


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Save the records after each case: those of a run that is cut short are useful too."""
    folder = item.config.getoption("--record")
    if folder and (nextitem is None or group_and_case(item) != group_and_case(nextitem)):
        save(item.config, folder)


def save(config: pytest.Config, folder: Path) -> None:
    """Write all that has been measured as pytest-benchmark's JSON, and as CSV."""
    suite = config.stash[_SUITE]
    machine_info, commit_info = origin(config)
    saved = config.hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=suite.benchmarks,
        include_data=True,
        machine_info=machine_info,
        commit_info=commit_info,
    )
    config.hook.pytest_benchmark_update_json(config=config, benchmarks=suite.benchmarks, output_json=saved)
    before = config.stash.get(_BEFORE, None)
    write(merge(before, saved) if before else saved, folder / suite.device.slug)


@cache
def origin(config: pytest.Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return pytest-benchmark's description of the machine and of the commit."""
    hook = config.hook
    machine_info = hook.pytest_benchmark_generate_machine_info(config=config)
    hook.pytest_benchmark_update_machine_info(config=config, machine_info=machine_info)
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
    return machine_info, commit_info


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    del machine_info["node"]
    machine_info |= config.stash[_SUITE].device.facts()


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Take the commit from the environment where the sources came without git."""
    if commit := os.environ.get("MTADAM_FUSED_COMMIT"):
        commit_info |= {"id": commit, "dirty": False}


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["left_out"] = [asdict(entry) for entry in config.stash[_SUITE].left_out]


# -- what is shown -----------------------------------------------------------------------------------------------------


def pytest_collection_finish(session: pytest.Session) -> None:
    """Warn if the machine is busy, and show that no case has begun."""
    cases = {group_and_case(item) for item in session.items if is_benchmark(item)}
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not cases or reporter is None or session.config.getoption("collectonly"):
        return
    if warning := warn_before(look_at_others()):
        reporter.write_line(warning, yellow=True)
    session.config.stash[_PROGRESS] = Progress(len(cases), sys.stdout, reporter.write_line)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Show that a case begins. Nothing is captured between tests, so it reaches the terminal."""
    progress = item.config.stash.get(_PROGRESS, None)
    if progress is not None and is_benchmark(item):
        progress.begin(" ".join(group_and_case(item)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (progress := session.config.stash.get(_PROGRESS, None)) is not None:
        progress.close()


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
    """Print no dot for each contender: the progress is shown by cases. Failures, and -v, show as they always do."""
    of_ours = (config.rootpath / report.nodeid.partition("::")[0]).is_relative_to(Path(__file__).parent)
    if not of_ours or report.failed or config.getoption("verbose") > 0 or (report.passed and report.when != "call"):
        return None
    return report.outcome, "", ""


# After pytest-benchmark's tables. The reporter's type is a string, for pytest shows it from 8.4 on.
@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter", config: pytest.Config) -> None:
    """Show all tables, but with --quick; at the end ten lines, and a warning if the machine was busy."""
    suite = config.stash[_SUITE]
    if not suite.records:
        return
    if not config.getoption("--quick"):
        terminalreporter.section("side by side")
        terminalreporter.write_line(summary(suite.records, suite.left_out))
    terminalreporter.section("in short")
    terminalreporter.write_line(headlines(suite.records))
    if late := suite.cases_left_out_for_time():
        terminalreporter.write_line(f"No time was left for {len(late)} cases: {', '.join(late)}", yellow=True)
    if warning := warn_after(suite.other_cpus()):
        terminalreporter.write_line(warning, yellow=True)
