"""setup.py: what a build compiles again, what it prints, and what it leaves out.

It builds a small tree of sources in the place of csrc, with g++ and with a script in the place of nvcc.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtadam_fused.__main__ import build_lines

ROOT = Path(__file__).parents[2]
SETUP = (ROOT / "setup.py").read_text()
FACTS = "installed/mtadam_fused/_build.json"
LOOPS = Path(re.findall(r'^LOOPS = "(.+)"$', SETUP, re.MULTILINE)[0])  # compiled once per instruction set

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on PATH")

SOURCES = {
    "csrc/launch.h": "",
    "csrc/bindings.cpp": '#include "launch.h"\n#include <pybind11/pybind11.h>\n',
    str(LOOPS): '#include "loops.h"\nnamespace MTADAM_ISA { int isa; }\n',
    "csrc/cpu/loops.h": "",
    "csrc/cpu/launch.cpp": '#include "../launch.h"\n#include "loops.h"\n',
    "csrc/cuda/balance.cu": '#include "device.cuh"\n',
    "csrc/cuda/device.cuh": '#include "../launch.h"\n',
    "csrc/cuda/launch.cu": '#include "../launch.h"\n__attribute__((visibility("default"))) int cuda_kernels = 1;\n',
    "toolkit/lib/libcudart_static.a": "!<arch>\n",  # an archive of nothing
}

# Compiles as C++. In its version, and whether it fails, it follows the environment.
NVCC = r"""#!/bin/sh
case "$*" in
  *--version*) printf 'nvcc: NVIDIA\nCuda compilation tools, release 13.0, V%s\n' "${NVCC_VERSION:-13.0.88}"; exit ;;
  *--dryrun*) echo '#$ LIBRARIES= "-L{toolkit}/lib"' >&2; exit ;;
esac
if [ "$NVCC_FAILS" ]; then echo "ptxas fatal: out of registers" >&2; exit 1; fi
for word; do
  shift
  case "$word" in -gencode*|--compiler-options*) ;; *) set -- "$@" "$word" ;; esac
done
exec g++ -fPIC -x c++ "$@"
"""

# Takes longer than it takes to start the next one, and notes when it runs.
SLOW_CXX = """#!/bin/sh
[ "$1" = --version ] && exit
echo start >>"$LOG"
sleep 0.2
g++ "$@"
status=$?
echo end >>"$LOG"
exit $status
"""


def write_script(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def write_pybind11(folder: Path, version: str) -> None:
    """Write what setup.py needs of pybind11, as new as pip unpacks it for each build."""
    (folder / "pybind11").mkdir(parents=True)
    (folder / "include/pybind11").mkdir(parents=True)
    (folder / "include/pybind11/pybind11.h").write_text("")
    code = f"__version__ = {version!r}\ndef get_include():\n    return {str(folder / 'include')!r}\n"
    (folder / "pybind11/__init__.py").write_text(code)


class Tree:
    """Sources that setup.py builds, and all programs that it finds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in SOURCES.items():
            self.write(name, text)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        (folder / "bin").mkdir()
        for program in ("g++", "as", "ld", "sleep"):
            (folder / "bin" / program).symlink_to(shutil.which(program) or program)
        write_script(folder / "toolkit/bin/nvcc", NVCC.replace("{toolkit}", str(folder / "toolkit")))
        write_pybind11(folder / "pybind11", "3.0.0")
        self.environment = {
            "PATH": str(folder / "bin"),
            "CXX": "g++",
            "CUDA_HOME": str(folder / "toolkit"),
            "PYTHONPATH": str(folder / "pybind11"),
        }

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", "installed"]
        env = self.environment | environment
        return subprocess.run(
            command, cwd=self.folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def build(self, **environment: str) -> tuple[set[str], str]:
        """Build, and return which objects and modules were made, and all that was printed."""
        done = self.run(**environment)
        assert done.returncode == 0, done.stdout
        made = re.findall(r"^\[\d+/\d+\] (?:cxx|nvcc|link) build/native-[^/]+/(\S+)$", done.stdout, re.MULTILINE)
        return set(made), done.stdout

    def installed(self) -> str:
        """Return what is installed: a module with CUDA kernels, one with those of the CPU alone, or nothing."""
        modules = list(self.folder.glob("installed/mtadam_fused/_C.*"))
        return "cuda" if any(b"cuda_kernels" in path.read_bytes() for path in modules) else "cpu" if modules else "none"

    def said(self) -> list[str]:
        """Return the lines of `python -m mtadam_fused` on the CPU and CUDA kernels that are installed."""
        return [line.split("kernels")[1].strip() for line in build_lines(self.folder / FACTS)]


def gxx_version() -> str:
    return subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()


def loops(made: set[str]) -> set[str]:
    """Return the objects of the source that is compiled once per instruction set."""
    return {name for name in made if name.startswith(f"cpu/{LOOPS.stem}.")}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_clean_tree_is_built_whole(tree: Tree) -> None:
    made, printed = tree.build()
    kernels = {"cpu/launch.o", "cuda/balance.o", "cuda/launch.o", "cuda/bindings.o"}
    assert made == kernels | loops(made) | {"cuda.so"}
    assert f"cpu/{LOOPS.stem}.baseline.o" in made
    assert tree.installed() == "cuda"
    assert "LEFT OUT" not in printed
    of_cpu, of_cuda = tree.said()
    compiler, _, instruction_sets = of_cpu.partition(" for ")
    assert compiler.startswith("built with g++")
    assert gxx_version() in compiler
    assert {f"cpu/{LOOPS.stem}.{isa}.o" for isa in instruction_sets.split(", ")} == loops(made)
    assert of_cuda == "built with nvcc 13.0.88 for sm_80, sm_90, sm_100"


def test_an_unchanged_tree_builds_nothing(tree: Tree) -> None:
    tree.build()
    made, printed = tree.build()
    assert not made
    assert "ninja: no work to do" in printed


@pytest.mark.parametrize(
    ("header", "includers"),
    [
        ("csrc/launch.h", {"cuda/bindings.o", "cpu/launch.o", "cuda/balance.o", "cuda/launch.o"}),
        ("csrc/cuda/device.cuh", {"cuda/balance.o"}),
        ("csrc/cpu/loops.h", {"cpu/launch.o", "loops"}),
    ],
)
def test_a_changed_header_rebuilds_its_includers(tree: Tree, header: str, includers: set[str]) -> None:
    inner_loops = loops(tree.build()[0])
    tree.write(header, "// changed\n")
    expected = includers - {"loops"} | (inner_loops if "loops" in includers else set())
    assert tree.build()[0] == expected | {"cuda.so"}


def test_changed_flags_rebuild_what_they_compile(tree: Tree) -> None:
    tree.build()
    made, _ = tree.build(MTADAM_FUSED_CUDA_ARCHITECTURES="90")
    assert made == {"cuda/balance.o", "cuda/launch.o", "cuda/bindings.o", "cuda.so"}
    assert tree.said()[1] == "built with nvcc 13.0.88 for sm_90"


@pytest.mark.parametrize(
    ("shown", "compiled"),
    [
        (r"9.0\n[N/A]\n8.0\n9.0\n", "sm_80, sm_90"),
        (r"12.0\n9.0\n", "sm_90, sm_120"),
        (r"[Not Supported]\n", "sm_80, sm_90, sm_100"),
    ],
)
def test_gpus_that_do_not_say_what_they_are_are_ignored(tree: Tree, shown: str, compiled: str) -> None:
    write_script(tree.folder / "bin/nvidia-smi", f"#!/bin/sh\nprintf '{shown}'\n")
    tree.build()
    assert tree.said()[1] == f"built with nvcc 13.0.88 for {compiled}"


def test_other_versions_of_compilers_rebuild_all(tree: Tree) -> None:
    everything, _ = tree.build(NVCC_VERSION="12.9")
    assert tree.said()[1].startswith("built with nvcc 12.9 for")
    assert tree.build(NVCC_VERSION="13.0")[0] == everything
    assert tree.said()[1].startswith("built with nvcc 13.0 for")


def test_another_pybind11_rebuilds_all_but_another_copy_nothing(tree: Tree, tmp_path: Path) -> None:
    everything, _ = tree.build()
    for name, version in {"copy": "3.0.0", "update": "3.1.0"}.items():
        write_pybind11(tmp_path / name, version)
    assert not tree.build(PYTHONPATH=str(tmp_path / "copy"))[0]
    assert tree.build(PYTHONPATH=str(tmp_path / "update"))[0] == everything


def test_messages_of_compilers_are_shown(tree: Tree) -> None:
    tree.write("csrc/cpu/launch.cpp", "#warning from the C++ compiler\n")
    tree.write("csrc/cuda/launch.cu", "#warning from the CUDA compiler\n")
    _, printed = tree.build()
    assert "#warning from the C++ compiler" in printed
    assert "#warning from the CUDA compiler" in printed


def test_a_failing_nvcc_leaves_the_cpu_kernels(tree: Tree) -> None:
    made, printed = tree.build(NVCC_FAILS="1")
    assert {"cpu/bindings.o", "cpu/launch.o", "cpu.so"} <= made
    assert "cuda.so" not in made
    assert "ptxas fatal: out of registers" in printed
    assert "the CUDA kernels are LEFT OUT, because nvcc failed (see above); the CPU kernels are built alone" in printed
    assert tree.installed() == "cpu"
    assert tree.said()[0].startswith("built with g++")
    assert tree.said()[1] == "not built: nvcc failed; pip install -v shows its messages"


def test_without_nvcc_the_cpu_kernels_are_built_alone(tree: Tree) -> None:
    made, printed = tree.build(CUDA_HOME="")
    assert made == {"cpu/bindings.o", "cpu/launch.o", "cpu.so"} | loops(made)
    assert tree.installed() == "cpu"
    assert "no nvcc in CUDA_HOME or on PATH: the CUDA kernels are left out" in printed
    assert tree.said()[1] == "not built: no nvcc in CUDA_HOME or on PATH"


def test_kernels_that_fail_later_are_not_installed_from_before(tree: Tree) -> None:
    tree.build()
    tree.build(NVCC_FAILS="1", NVCC_VERSION="other")
    assert tree.installed() == "cpu"
    tree.write("csrc/cpu/launch.cpp", "#error from the C++ compiler\n")
    _, printed = tree.build()
    assert "#error from the C++ compiler" in printed
    assert "the native module is LEFT OUT, because the C++ compiler failed" in printed
    assert tree.installed() == "none"
    assert tree.said() == ["not built: the C++ compiler failed; pip install -v shows its messages"] * 2


def test_without_gxx_nothing_is_compiled(tree: Tree) -> None:
    made, printed = tree.build(CXX="no-such-c++")
    assert not made
    assert "the native module is LEFT OUT, because the C++ compiler failed" in printed
    assert "'no-such-c++'" in printed
    assert tree.installed() == "none"
    assert all(line.startswith("not built: the C++ compiler failed: ") for line in tree.said())
    assert all("no-such-c++" in line for line in tree.said())


@pytest.mark.parametrize(("jobs", "at_once"), [("1", False), ("3", True), ("not a number", True)])
def test_max_jobs(tree: Tree, tmp_path: Path, jobs: str, at_once: bool) -> None:
    """Ignore a value that is no number, as torch.utils.cpp_extension does."""
    write_script(tmp_path / "bin/slow-c++", SLOW_CXX)
    made, _ = tree.build(CXX="slow-c++", CUDA_HOME="", LOG=str(tmp_path / "log"), MAX_JOBS=jobs)
    log = (tmp_path / "log").read_text().split()
    assert len(log) == 2 * len(made)
    assert ("start start" in " ".join(log)) == at_once


def test_an_old_setuptools_is_named(tree: Tree) -> None:
    tree.write("pybind11/sitecustomize.py", "import setuptools; setuptools.__version__ = '65.5.0'\n")
    done = tree.run()
    assert done.returncode == 1
    assert done.stdout.startswith("mtadam_fused: setuptools 65.5.0 is too old. Before --no-build-isolation, run: pip")


def test_a_missing_ninja_is_named(tree: Tree) -> None:
    tree.write("pybind11/ninja.py", "raise ModuleNotFoundError(\"No module named 'ninja'\")\n")
    done = tree.run()
    assert done.returncode == 1
    assert done.stdout.startswith(
        "mtadam_fused: No module named 'ninja'. Before --no-build-isolation, run: pip install"
    )


def test_what_no_build_wrote_is_said_to_be_unknown(tmp_path: Path) -> None:
    (line,) = build_lines(tmp_path / "_build.json")
    assert "built" in line or "recorded" in line
    assert "install" in line  # what to do
