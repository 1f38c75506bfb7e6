"""README says what is true: its Python runs, and its links lead somewhere."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import mtadam_fused
from mtadam_fused import rules, weighting
from tests.support.documentation import README, make_batch

ROOT = Path(__file__).parents[2]


def test_the_diff_is_of_two_programs_that_run() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
    removed, added = (re.sub(rf"^[{sign}].*\n|^[{other} ]", "", diff, flags=re.M) for sign, other in ("+-", "-+"))
    assert len(re.findall(r"^\+ *\S", diff, re.M)) == 3
    for program, kind in ((removed, torch.optim.Adam), (added, mtadam_fused.BalancedAdam)):
        model = nn.Linear(3, 3)
        before = model.weight.detach().clone()
        names = {"torch": torch, "model": model, "loader": [make_batch()]}
        exec(program, names)
        assert type(names["optimizer"]) is kind
        assert not torch.equal(model.weight, before)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize(
    ("word", "definition"), [("term", "*term*"), ("K", "**K**"), ("anchor", "*anchor*"), ("reaches", "*reaches*")]
)
def test_words_are_defined_where_they_are_first_used(word: str, definition: str) -> None:
    text = re.sub(r"!\[.*?\]|`.*?`", "", README)
    first = re.search(rf"\b{word}\b", text)
    assert first is not None
    assert text[: first.end()].endswith(definition.rstrip("*"))
    assert text[first.end() :].startswith("*")


def test_docstring_example_is_readmes() -> None:
    for line in ("optimizer = BalancedAdam(model.parameters(), lr=1e-3)", "optimizer.backward(losses)"):
        assert line in README
        assert line in (mtadam_fused.BalancedAdam.__doc__ or "")


def test_pictures_and_files_exist() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_versions_are_the_same() -> None:
    version = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(version) == 1
    assert re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == version
    assert re.findall(r"^  version = {(.+)},$", README, re.MULTILINE) == version
    assert re.findall(r"^## \[(\d.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[:1] == version


def test_public_names_have_docstrings() -> None:
    for module in (mtadam_fused, rules, weighting):
        for value in filter(callable, (getattr(module, name) for name in module.__all__)):
            names = [name for name, m in vars(value).items() if callable(m) and not name.startswith("_")]
            assert value.__doc__
            assert all(inspect.getdoc(getattr(value, name)) for name in names), value  # of its own, or of the base
