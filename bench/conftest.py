"""Options, the device, what goes into pytest-benchmark's JSON, and the tables at the end."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from devices import device_of
from measure import FULL, QUICK
from records import CSV_NAME, JSON_NAME, parse, write_csv
from suite import Suite
from tables import summary

_SUITE = pytest.StashKey[Suite]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what to benchmark")
    parser.addoption("--quick", action="store_true", help="the smaller cases only, and fewer turns")
    parser.addoption("--seconds", type=float, help="how long the contenders of a case take turns, at least some")
    parser.addoption("--record", type=Path, metavar="FOLDER", help="write JSON and CSV into FOLDER/<machine>")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    device = device_of(config.getoption("--device"))
    budget = QUICK if config.getoption("--quick") else FULL
    if seconds := config.getoption("--seconds"):
        budget = replace(budget, seconds=seconds)
    config.stash[_SUITE] = Suite(device, budget)
    if folder := config.getoption("--record"):
        (folder / device.slug).mkdir(parents=True, exist_ok=True)
        config.option.benchmark_json = folder / device.slug / JSON_NAME


@pytest.fixture
def suite(pytestconfig: pytest.Config) -> Suite:
    return pytestconfig.stash[_SUITE]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --quick, keeps the cases that their modules call quick."""
    if not config.getoption("--quick"):
        return
    chosen = [item for item in items if item.callspec.params["case"] in item.module.QUICK_CASES]  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    del machine_info["node"]
    machine_info |= config.stash[_SUITE].device.facts()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    suite = config.stash[_SUITE]
    output_json["left_out"] = [asdict(entry) for entry in suite.left_out]
    if folder := config.getoption("--record"):
        write_csv(parse(output_json), folder / suite.device.slug / CSV_NAME)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    suite = config.stash[_SUITE]
    if suite.records:
        terminalreporter.section("side by side")
        terminalreporter.write_line(summary(suite.records, suite.left_out))
