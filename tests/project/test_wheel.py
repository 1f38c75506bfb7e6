"""`make wheel`: a manylinux wheel that holds all kernels, and runs in an empty environment without compilers."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCES = ("Makefile", "setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "mtadam_fused", "triton_kernels")
CHECK = ROOT / "tests/support/check_installed.py"
KINDS = ["cpu", "cuda"] if shutil.which("nvcc") else ["cpu"]
SYSTEM_LIBRARIES = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libdl.so.2", "librt.so.1"}
SYSTEM_LIBRARIES |= {"libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}

needs_tools = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("g++") and find_spec("auditwheel")), reason="no make, g++ or auditwheel"
)
pytestmark = [needs_tools, pytest.mark.slow]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources with what ninja built of them, and `make wheel` there: other tests build in the sources."""
    folder = tmp_path_factory.mktemp("sources")
    for source in [*(ROOT / name for name in SOURCES), *ROOT.glob("build/native-*")]:
        if source.is_dir():  # with its times, by which ninja knows what has changed
            shutil.copytree(source, folder / source.relative_to(ROOT), symlinks=True)
        else:
            shutil.copy2(source, folder)
    # In this environment, not in one that make would set up here. `make test TORCH=...` exports its variables.
    command = ["make", "--old-file=.venv/installed", f"BIN={Path(sys.executable).parent}", "wheel"]
    made = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "TORCH")
    environment = {name: value for name, value in os.environ.items() if name not in made}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    (wheel,) = (tree / "dist").iterdir()
    return wheel


@pytest.fixture
def python(wheel: Path, tmp_path: Path) -> Path:
    """Install the wheel into an empty environment that sees this one's torch, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    # Without PYTHONPATH and in another folder than the sources, where pip would find the package installed.
    subprocess.run([*pip, str(wheel)], check=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    # As a folder with packages alone: the hooks of an editable install that lie there do not run.
    (site_packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site_packages / "torch.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


def check_installed(python: Path) -> subprocess.CompletedProcess[str]:
    """Run the check that cibuildwheel runs, with no program on PATH but the environment's own."""
    environment = {"PATH": str(python.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, "-I", CHECK, *KINDS], env=environment, capture_output=True, text=True)


def test_it_is_tagged_for_other_machines(tree: Path, wheel: Path) -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.fullmatch(rf"mtadam_fused-[\d.]+-{tag}-{tag}-manylinux_2_\d+_\w+\.whl", wheel.name)
    (unrepaired,) = (tree / "build/wheel").iterdir()  # the tag comes from the check of its libraries
    assert "-linux_" in unrepaired.name


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"mtadam_fused"}
    assert len([name for name in names if name.endswith(".so")]) == 1  # no library that auditwheel had to bring
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mtadam_fused").rglob("*.py")}
    modules |= {f"mtadam_fused/{path.relative_to(ROOT)}" for path in (ROOT / "triton_kernels").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_it_is_linked_to_neither_torch_nor_cuda(tree: Path) -> None:
    """One wheel serves every torch, and machines without a driver."""
    (module,) = tree.glob("build/lib*/mtadam_fused/_C.*.so")
    dynamic = subprocess.run(["readelf", "--dynamic", module], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert "libc.so.6" in needed
    assert needed <= SYSTEM_LIBRARIES


@pytest.mark.skipif("cuda" not in KINDS, reason="no nvcc on PATH")
def test_it_has_kernels_for_every_gpu_that_wheels_are_built_for(wheel: Path) -> None:
    (usual,) = re.findall(r"^USUAL_ARCHITECTURES = (.+)$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    facts = json.loads(zipfile.ZipFile(wheel).read("mtadam_fused/_build.json"))
    assert facts["cuda"]["architectures"] == [f"sm_{arch}" for arch in ast.literal_eval(usual)]


def test_it_runs_in_an_empty_environment(python: Path) -> None:
    done = check_installed(python)
    assert done.returncode == 0, done.stderr
    assert "on cpu: backend cpu\n" in done.stdout
    assert f"passed: installed in {python.parents[1]}" in done.stdout


def test_a_wheel_without_kernels_is_rejected(python: Path) -> None:
    (module,) = python.parents[1].glob("lib/python*/site-packages/mtadam_fused/_C.*.so")
    module.unlink()
    done = check_installed(python)
    assert done.returncode == 1
    assert "backend" in done.stderr.splitlines()[-1]
