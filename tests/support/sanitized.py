"""Builds the native module with the CPU kernels alone: under sanitizers, or from sources with deliberate faults."""

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
LOOPS = "blocks.cpp"  # compiled once per instruction set
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
CAPABILITIES = ("default", "avx2", "avx512") if IS_X86 else ("default",)

SANITIZE = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS")


def setup_constant(name: str) -> Any:
    """Return the literal that setup.py assigns to ``name``: what is tested is built as what is shipped."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py assigns nothing to {name}")


FLAGS: list[str] = setup_constant("FLAGS")
INSTRUCTION_SETS: dict[str, list[str]] = setup_constant("INSTRUCTION_SETS")


# -- building ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compilation:
    source: Path
    object: Path
    flags: tuple[str, ...]

    def run(self) -> Path:
        macros = ["-DMTADAM_COMPILER=__VERSION__"]
        includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
        command = ["g++", *FLAGS, "-fPIC", *macros, *includes, *self.flags, "-c", self.source, "-o", self.object]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return self.object


def bindings(folder: Path) -> Compilation:
    """Describe the Python bindings, which every build shares: they touch nothing of a step, and compile slowest."""
    return Compilation(CSRC / "bindings.cpp", folder / "bindings.o", ("-O0",))


def kernels(folder: Path, csrc: Path, isas: Iterable[str], flags: Sequence[str]) -> list[Compilation]:
    """Describe all objects of the kernels in ``csrc``, the slowest first."""
    folder.mkdir()
    flags = (*flags, *(["-DMTADAM_X86=1"] if "avx2" in isas else []))
    others = sorted(source for source in (csrc / "cpu").glob("*.cpp") if source.name != LOOPS)
    return [
        *(loops(folder, csrc, isa, (*flags, *INSTRUCTION_SETS[isa])) for isa in isas),
        *(Compilation(source, folder / f"{source.stem}.o", flags) for source in others),
    ]


def loops(folder: Path, csrc: Path, isa: str, flags: Sequence[str]) -> Compilation:
    return Compilation(csrc / "cpu" / LOOPS, folder / f"{isa}.o", (f"-DMTADAM_ISA={isa}", *flags))


def compile_all(jobs: Iterable[Compilation]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(Compilation.run, jobs))


def link(library: Path, jobs: Iterable[Compilation], flags: Sequence[str] = ()) -> Path:
    objects = [job.object for job in jobs]
    subprocess.run(["g++", "-shared", *flags, "-o", library, *objects, "-ldl"], check=True)
    return library


# -- deliberate faults -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """An expression of the sources, and what is computed in its place."""

    file: str
    text: str  # found once in the file; the expression is `right` in it, or all of it
    wrong: str
    right: str = ""


def with_faults(folder: Path, faults: Sequence[Fault]) -> Path:
    """Copy the sources so that ``mtadam_fault``, a variable of the module, picks one of the faults, from 1; 0 none."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    for number, fault in enumerate(faults, start=1):
        path = csrc / fault.file
        content, right = path.read_text(), fault.right or fault.text
        assert content.count(fault.text) == 1, f"{fault.file} has {content.count(fault.text)} times {fault.text!r}"
        seeded = fault.text.replace(right, f"(mtadam_fault == {number} ? ({fault.wrong}) : ({right}))", 1)
        path.write_text(content.replace(fault.text, seeded))
    header = csrc / "update_math.h"
    header.write_text(header.read_text().replace("#pragma once", '#pragma once\nextern "C" int mtadam_fault;', 1))
    isa = csrc / "cpu" / "isa.cpp"
    isa.write_text(isa.read_text() + '\n__attribute__((visibility("default"))) int mtadam_fault = 0;\n')
    return csrc


# -- running -----------------------------------------------------------------------------------------------------------


def runtime(name: str) -> str:
    """Return the path of a sanitizer's library, which has to be in the process from the start."""
    path = subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"lib{name} is not installed")
    return path


@dataclass(frozen=True)
class Outcome:
    """The end of a run of native_cases.py."""

    returncode: int
    stdout: str
    stderr: str

    @cached_property
    def printed(self) -> dict[str, Any]:
        assert self.returncode == 0, self.stderr
        return json.loads(self.stdout)

    def __getitem__(self, name: str) -> Any:
        return self.printed[name]


def runtimes() -> tuple[str, ...]:
    """Return the libraries that a module compiled with SANITIZE needs."""
    return runtime("asan"), runtime("ubsan")


def run_cases(capability: str, *, preload: Sequence[str] = (), pool: str = "", **wanted: Any) -> Outcome:
    """Run what is ``wanted`` of native_cases.py in a process of its own.

    Args:
        capability: lowers the instruction set (ATEN_CPU_CAPABILITY).
        preload: paths of the sanitizers' libraries.
        pool: whose threads run the kernels (MTADAM_FUSED_THREADS); the default where empty.
    """
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    # Leaks are not looked for: that needs ptrace, which containers often refuse.
    environment |= {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    environment["OMP_WAIT_POLICY"] = "passive"  # for more threads than processors
    environment["PYTHONWARNINGS"] = "ignore::UserWarning"  # of optimizers, in random cases
    if pool:
        environment["MTADAM_FUSED_THREADS"] = pool
    command = [sys.executable, "-m", "tests.kernels.native_cases", json.dumps(wanted)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr)
