"""The workflows call targets of the Makefile, with the Pythons of pyproject.toml; forms ask for what is needed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = ROOT / ".github/ISSUE_TEMPLATE"
PYPROJECT = (ROOT / "pyproject.toml").read_text()  # tomllib is new in Python 3.11


def load(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def targets() -> set[str]:
    """Return the targets that the Makefile declares as commands and has rules for."""
    makefile = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    return set(" ".join(phony).split()) & set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in load(workflow)["jobs"].values() for step in job["steps"]]


def pythons() -> list[str]:
    """Return the versions of Python that the package says it supports."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_targets_exist(workflow: Path) -> None:
    runs = [step["run"].split() for step in steps(workflow) if "run" in step]
    called = {words[1] for words in runs if words[0] == "make"}
    assert called
    assert called <= targets()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_may_only_read_and_end(workflow: Path) -> None:
    whole = load(workflow)
    assert whole["permissions"] == {"contents": "read"}
    assert "concurrency" in whole
    for name, job in whole["jobs"].items():
        assert "timeout-minutes" in job, name
        assert job.get("permissions") == ({"id-token": "write"} if name == "publish" else None), name


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_have_a_major_version(workflow: Path) -> None:
    for step in steps(workflow):
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v1)", step.get("uses", "a/b@v1")), step


def test_pythons_and_torches_are_those_of_pyproject() -> None:
    matrix = load(ROOT / ".github/workflows/ci.yml")["jobs"]["versions"]["strategy"]["matrix"]
    assert matrix["python"] == pythons() != []
    (wanted,) = re.findall(r'^requires-python = "(.+)"$', PYPROJECT, re.MULTILINE)
    assert all(python in SpecifierSet(wanted) for python in pythons())
    assert "3.9" not in SpecifierSet(wanted)
    (oldest,) = re.findall(r'^dependencies = \["torch>=([\d.]+)"\]$', PYPROJECT, re.MULTILINE)
    assert matrix["torch"] == [f"{oldest}.0", "newest"]
    assert f'"pip install torch=={oldest}.0"' in PYPROJECT  # of the wheels' test


def test_wheels_are_built_for_every_python() -> None:
    (build,) = re.findall(r'^build = "(.+)"$', PYPROJECT, re.MULTILINE)
    assert build.split() == [f"cp{python.replace('.', '')}-manylinux*" for python in pythons()]
    for file in re.findall(r"\{project\}/(\S+?)[\" ]", PYPROJECT):
        assert (ROOT / file).is_file(), file


def test_a_bug_report_asks_for_the_report_of_the_package() -> None:
    fields = {field["id"]: field for field in load(FORMS / "bug_report.yml")["body"] if "id" in field}
    assert "python -m mtadam_fused" in fields["report"]["attributes"]["label"]
    assert all(fields[name]["validations"]["required"] for name in ("happened", "program", "report"))
    assert load(FORMS / "feature_request.yml")["body"]
    assert load(FORMS / "config.yml") == {"blank_issues_enabled": False}
