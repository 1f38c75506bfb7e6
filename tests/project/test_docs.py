"""The pages under docs say what is true: their code runs, their links lead somewhere, the site builds."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.project.test_examples import PRINTED
from tests.support.documentation import ON_GPU, PAGES, ROOT, WHOLE_FILE, prepared_names, python_blocks, run_blocks

IN_PROCESSES = ("ddp", "fsdp2")  # tests/distributed runs their code, in several processes
NEED = {"lightning_and_transformers": ("lightning", "transformers", "accelerate")}
FILE = re.compile(r"`((?:bench|csrc|docs|examples|mtadam_fused|oracles|tests|triton_kernels)/[\w./*-]*)`")
BLOCKS = {path.stem: python_blocks(path.read_text()) for path in PAGES}


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks and page not in IN_PROCESSES])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEED.get(page, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes long
    torch.manual_seed(0)
    names = prepared_names()
    run_blocks(BLOCKS[page], names, page)
    if page == "tutorial":  # what it says of its results
        assert names["balanced"]["slope"] < names["plain"]["slope"] / 2
        assert names["balanced"]["length"] < names["plain"]["length"]


def test_broken_code_is_seen() -> None:
    with pytest.raises(NameError, match="optimiser"):
        run_blocks(["optimizer = torch.optim.Adam(model.parameters())", "optimiser.step()"], prepared_names())
    with pytest.raises(SyntaxError):
        run_blocks([f"{ON_GPU}graph replay()"], prepared_names())


def test_blocks_that_need_a_gpu_are_few() -> None:
    found = {page: sum(block.startswith(ON_GPU) for block in blocks) for page, blocks in BLOCKS.items()}
    assert {page: number for page, number in found.items() if number} == {"cuda_graphs": 2}


def test_every_code_block_has_a_language_and_examples_are_run() -> None:
    for path in PAGES:
        openings = re.findall(r"^ *```(.*)$", path.read_text(), re.MULTILINE)[::2]
        assert all(re.match(r"(python|diff|console|text)$", opening) for opening in openings), path
    whole = [block for blocks in BLOCKS.values() for block in blocks if block.startswith(WHOLE_FILE)]
    included = {name for block in whole for name in re.findall(r"examples/(\w+\.py)", block)}
    assert included == {words.split()[0] for words in PRINTED}


def test_files_that_pages_name_exist() -> None:
    named = {name: path for path in PAGES for name in FILE.findall(path.read_text())}
    assert "csrc/update_math.h" in named
    for name, path in named.items():
        assert any(ROOT.glob(name)), f"{path} names {name}"


def test_site_builds(tmp_path: Path) -> None:
    """Strict: no dead link or anchor, no page that is in no menu, no docstring that cannot be read."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(build, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for path in PAGES:
        assert (tmp_path / path.relative_to(ROOT / "docs")).with_suffix(".html").exists()
