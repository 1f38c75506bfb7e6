"""Collects the rows of the benchmarks; prints them as tables, and with ``--record FOLDER`` writes them there."""

import json
from pathlib import Path

import pytest
from report import Report, tables, where

_REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, metavar="FOLDER", help="write step.json and table.md into FOLDER")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = {}


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[_REPORT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[_REPORT]
    if not report:
        return
    terminalreporter.section("side by side")
    place = where(config)
    text = (
        f"{tables(report)}\n\n{place['machine']}, {place['threads']} threads, torch {place['torch']}; medians of turns."
    )
    terminalreporter.write_line(text)
    if folder := config.getoption("--record"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step.json").write_text(json.dumps({**place, "tables": report}, indent=1) + "\n")
        (folder / "table.md").write_text(text + "\n")
