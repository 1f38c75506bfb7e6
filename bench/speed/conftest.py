"""Options, the device, the order of cases, what is recorded, and the tables at the end."""

import math
import os
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bench.harness.devices import COMPILE_SECONDS, device_of
from bench.harness.measure import FULL, QUICK
from bench.harness.records import write
from bench.harness.suite import Suite, turn_of
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
    device = device_of(config.getoption("--device"), config.getoption("--compile-seconds"))
    budget = QUICK if config.getoption("--quick") else FULL
    if seconds := config.getoption("--seconds"):
        budget = replace(budget, seconds=seconds)
    config.stash[_SUITE] = Suite(device, budget, config.getoption("--within"))
    if folder := config.getoption("--record"):
        (folder / device.slug).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def suite(pytestconfig: pytest.Config) -> Suite:
    return pytestconfig.stash[_SUITE]


def group_and_case(item: pytest.Item) -> tuple[str, str]:
    return item.module.GROUP, item.callspec.params["case"]  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Brings the cases into order; with --quick, keeps those that their modules call quick."""
    items.sort(key=lambda item: turn_of(*group_and_case(item)))
    if not config.getoption("--quick"):
        return
    chosen = [item for item in items if item.callspec.params["case"] in item.module.QUICK_CASES]  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


# -- records -----------------------------------------------------------------------------------------------------------


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Saves the records after each case, for those of a run that is cut short are worth having too."""
    folder = item.config.getoption("--record")
    if folder and (nextitem is None or group_and_case(item) != group_and_case(nextitem)):
        save(item.config, folder)


def save(config: pytest.Config, folder: Path) -> None:
    """Writes all that has been measured as pytest-benchmark's JSON, and as CSV."""
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
    """What pytest-benchmark says of the machine, and of the commit."""
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
    """Takes the commit from the environment where the sources came without git."""
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
