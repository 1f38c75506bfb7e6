"""Installing: an sdist builds, wheels have what they need, and without a compiler the package says so and runs."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mtadam_fused.backends import statuses

ROOT = Path(__file__).parents[2]


def build(source: Path, kind: str, out: Path, **environment: str) -> tuple[Path, str]:
    """Build an sdist or a wheel through the build backend, as pip does; return it and what was printed."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, env=os.environ | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    (built,) = out.iterdir()
    return built, run.stdout + run.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Build an sdist; return it and what was printed."""
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture
def unpacked(sdist: tuple[Path, str], tmp_path: Path) -> Path:
    """Unpack the sources of an sdist, nothing built yet."""
    with tarfile.open(sdist[0]) as archive:
        archive.extractall(tmp_path / "sources", filter="data")
    (sources,) = (tmp_path / "sources").iterdir()
    return sources


RELATIVE = re.compile(r"\]\((?![a-z]+:|#)")


def test_the_description_has_no_relative_links(unpacked: Path) -> None:
    assert len(RELATIVE.findall((ROOT / "README.md").read_text())) > 10
    described = (unpacked / "PKG-INFO").read_text()
    assert "# mtadam_fused" in described
    assert not RELATIVE.search(described)
    assert "![" not in described  # no URL to show them from
    project = (unpacked / "pyproject.toml").read_text()
    named = project.replace("[project.urls]", '[project.urls]\nRepository = "https://example.org/some"')
    (unpacked / "pyproject.toml").write_text(named)
    command = [sys.executable, "setup.py", "--long-description"]
    described = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, check=True).stdout
    assert not RELATIVE.search(described)
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert version is not None
    for path in ("raw/v{}/bench/results/cpu-amd/hero.png", "blob/v{}/docs/limits.md"):
        assert f"](https://example.org/some/{path.format(version[1])})" in described


def run_from(wheel: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code with only the wheel's package on the path, besides what is installed."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


STEP = """
import sys
# An editable install's finder would lend the wheel the modules that it lacks.
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
import torch, mtadam_fused
BACKEND = "auto"
p = torch.nn.Parameter(torch.ones(3))
optimizer = mtadam_fused.MTAdam([p], lr=0.5, backend=BACKEND)
optimizer.backward([p.sum()]); optimizer.step()
print(mtadam_fused.__file__, [round(x, 6) for x in p.tolist()], repr(optimizer).splitlines()[-1])
"""

# What was built, and what the module itself says of that.
FACTS = (
    STEP.replace("BACKEND = ", "from mtadam_fused.__main__ import report\nBACKEND = ")
    + """
from mtadam_fused.backends.native import module
print(report())
print("module:", getattr(module, "compiler", None), getattr(module, "CUDA_ARCHITECTURES", "no CUDA"), sep="|")
"""
)

# The same on the Triton kernels, which the wheel has as a package of its own.
TRITON_STEP = STEP.replace("import sys", "import os, sys; os.environ['TRITON_INTERPRET'] = '1'").replace(
    "auto", "triton"
)


@pytest.mark.slow
def test_sdist_builds_a_wheel_that_works(unpacked: Path, tmp_path: Path) -> None:
    # One architecture: test_cuda_build.py compiles for all of them.
    wheel, _ = build(unpacked, "wheel", tmp_path / "wheel", MTADAM_FUSED_CUDA_ARCHITECTURES="90")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("mtadam_fused/_C.") for name in names)
    assert "mtadam_fused/py.typed" in names
    kernels = {path.name for path in (ROOT / "triton_kernels").glob("*.py")}
    assert kernels == {Path(name).name for name in names if name.startswith("mtadam_fused/triton_kernels/")}
    assert not any(name.startswith(("tests", "bench", "csrc", "triton_kernels")) for name in names)
    run = run_from(wheel, tmp_path / "installed", FACTS)
    assert run.returncode == 0, run.stderr
    assert str(tmp_path) in run.stdout
    assert "(cpu: cpu)" in run.stdout
    check_report(run.stdout)
    if statuses()["triton"].usable:
        run = run_from(wheel, tmp_path / "installed", TRITON_STEP)
        assert run.returncode == 0, run.stderr
        assert str(tmp_path) in run.stdout
        assert "(cpu: triton)" in run.stdout


def check_report(printed: str) -> None:
    """Compare what ``python -m mtadam_fused`` says with what the compilers wrote into the module."""
    of_module = printed[printed.index("module:") :].strip().split("|")
    compiler, architectures = of_module[1].split()[0], of_module[2]
    assert "on cpu: backend cpu\n" in printed
    assert re.search(rf"CPU kernels +built with .*\b{re.escape(compiler)}\b.* for .*baseline", printed), printed
    if not shutil.which("nvcc"):
        assert architectures == "no CUDA"
        assert re.search("CUDA kernels +not built: no nvcc in CUDA_HOME or on PATH", printed), printed
        return
    assert architectures == "sm_90"
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    (release,) = re.findall(r"V([\d.]+)", version)
    assert re.search(rf"CUDA kernels +built with nvcc {re.escape(release)} for sm_90\n", printed), printed


def test_metadata_is_complete_and_nothing_deprecated(sdist: tuple[Path, str], unpacked: Path) -> None:
    metadata = (unpacked / "PKG-INFO").read_text().splitlines()
    assert "License-Expression: MIT" in metadata
    assert "License-File: LICENSE" in metadata
    assert "Author: The mtadam_fused authors" in metadata
    assert "Project-URL: Paper, https://arxiv.org/abs/2006.14683" in metadata
    assert "deprecated" not in sdist[1]


def test_pre_commit_has_the_linters_of_make() -> None:
    def programs(file: str, folder: str) -> list[str]:
        """Return commands as "ruff check": without options, files and macros."""
        lines = re.findall(rf"{re.escape(folder)}/((?:ruff|mypy|clang-format).*)", (ROOT / file).read_text())
        return [re.match(r"[\w-]+(?: [a-z]+)?", line)[0] for line in lines]  # type: ignore[index]

    assert programs(".pre-commit-config.yaml", "entry: .venv/bin") == programs("Makefile", "$(BIN)") != []


def test_sources_that_hide_the_package_are_named(unpacked: Path) -> None:
    """Start Python in the folder of ``pip install .``."""
    command = [sys.executable, "-c", STEP.replace("import sys", "import sys; sys.path.insert(0, '')")]
    run = subprocess.run(command, cwd=unpacked, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"Python took the sources in {unpacked}; start it in another folder" in run.stderr
    assert "(cpu: reference)" in run.stdout


@pytest.mark.slow
def test_without_a_compiler_it_installs_says_so_and_runs(unpacked: Path, tmp_path: Path) -> None:
    wheel, printed = build(unpacked, "wheel", tmp_path / "wheel", CC="no-such-cc", CXX="no-such-c++")
    assert "the native module is LEFT OUT" in printed
    assert not any("_C." in name for name in zipfile.ZipFile(wheel).namelist())
    run = run_from(wheel, tmp_path / "installed", FACTS)
    assert run.returncode == 0, run.stderr
    assert "(cpu: reference)" in run.stdout
    assert "[0.5, 0.5, 0.5]" in run.stdout
    assert "on cpu: backend reference\n" in run.stdout
    assert re.search("CPU kernels +not built: the C\\+\\+ compiler failed: .*no-such-c", run.stdout)
    assert "install a C++ compiler" in run.stderr
    assert "took the sources" not in run.stderr
