"""Options, the device, the order of cases, what is recorded, and the tables at the end."""

import math
import os
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.harness.devices import COMPILE_SECONDS, select_device
from bench.harness.measure import FULL, QUICK
from bench.harness.records import write
from bench.harness.suite import Suite, sort_key
from bench.report.tables import summary

_SUITE = pytest.StashKey[Suite]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what to benchmark")
    parser.addoption("--quick", action="store_true", help="the smaller cases only, and fewer turns")
    parser.addoption("--seconds", type=float, help="how long the contenders of a case take turns, at least some")
    parser.addoption(
        "--within", type=float, default=math.inf, metavar="SECONDS", help="leave out the cases not begun by then"
    )
    parser.addoption(
        "--compile-seconds", type=int, default=COMPILE_SECONDS, help="what torch.compile may take for a contender"
    )
    parser.addoption("--record", type=Path, metavar="FOLDER", help="write JSON and CSV into FOLDER/<machine>")


def pytest_configure(config: pytest.Config) -> None:
    device = select_device(config.getoption("--device"), config.getoption("--compile-seconds"))
    budget = QUICK if config.getoption("--quick") else FULL
    if seconds := config.getoption("--seconds"):
        budget = replace(budget, seconds=seconds)
    config.stash[_SUITE] = Suite(device, budget, config.getoption("--within"))
    if folder := config.getoption("--record"):
        (folder / device.slug).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def suite(pytestconfig: pytest.Config) -> Suite:
    return pytestconfig.stash[_SUITE]


def is_benchmark(item: pytest.Item) -> bool:
    """Return whether it is one, or a test collected beside them by ``pytest bench``."""
    return Path(__file__).parent in item.path.parents


def group_and_case(item: pytest.Item) -> tuple[str, str]:
    return item.module.GROUP, item.callspec.params["case"]  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the benchmarks; with --quick, keep those that their modules call quick."""
    benchmarks = [item for item in items if is_benchmark(item)]
    benchmarks.sort(key=lambda item: sort_key(*group_and_case(item)))
    if config.getoption("--quick"):
        benchmarks = keep_quick(config, benchmarks)
    items[:] = [item for item in items if not is_benchmark(item)] + benchmarks


def keep_quick(config: pytest.Config, benchmarks: list[pytest.Item]) -> list[pytest.Item]:
    """Deselect the benchmarks that their modules do not call quick, and return the others."""
    chosen = [item for item in benchmarks if item.callspec.params["case"] in item.module.QUICK_CASES]  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=[item for item in benchmarks if item not in chosen])
    return chosen


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
    write(saved, folder / suite.device.slug)


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


# The reporter's type is a string, for pytest shows it from 8.4 on.
def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter", config: pytest.Config) -> None:
    suite = config.stash[_SUITE]
    if suite.records:
        terminalreporter.section("side by side")
        terminalreporter.write_line(summary(suite.records, suite.left_out))
