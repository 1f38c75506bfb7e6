"""The native CPU kernels, tested by a C++ program of their own, in tests/kernels/native.

The program is built here with the flags of setup.py, once as shipped and once with the sanitizers, and run once per
instruction set. It holds every number to an oracle; these tests hold the runs to each other.
"""

import ast
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOOPS = ROOT / "csrc/cpu/blocks.cpp"  # compiled once per instruction set
NATIVE = ROOT / "tests/kernels/native"
PROGRAM = ("compare", "problem", "test_steps", "test_combined", "test_conversions", "test_faults", "test_kernels")
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

CAPABILITIES = ("default", "avx2", "avx512") if IS_X86 else ("default",)
BUFFERS = ("param", "exp_avg", "combined", "grad", "second", "maximum")

ADDRESS = ("-O1", "-g1", "-fsanitize=address", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS")
UNDEFINED = "-fsanitize=undefined"


def setup_constant(name: str) -> Any:
    """The literal that setup.py assigns to ``name``: what is tested is built as what is shipped."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py assigns nothing to {name}")


FLAGS: list[str] = setup_constant("FLAGS")
INSTRUCTION_SETS: dict[str, list[str]] = setup_constant("INSTRUCTION_SETS")


@dataclass(frozen=True)
class Compilation:
    source: Path
    object: Path
    flags: tuple[str, ...]


def loops(isa: str, folder: Path, extra: Sequence[str] = ()) -> Compilation:
    return Compilation(LOOPS, folder / f"{isa}.o", (f"-DMTADAM_ISA={isa}", *INSTRUCTION_SETS[isa], *extra))


def compilations(folder: Path, kernel_flags: Sequence[str], program_flags: Sequence[str]) -> list[Compilation]:
    """All objects of the program, the slowest first."""
    folder.mkdir()
    isas = [isa for isa in INSTRUCTION_SETS if isa == "baseline" or IS_X86]
    others = sorted(source for source in LOOPS.parent.glob("*.cpp") if source != LOOPS)
    return [
        *(Compilation(NATIVE / f"{name}.cpp", folder / f"{name}.o", tuple(program_flags)) for name in PROGRAM),
        *(loops(isa, folder, kernel_flags) for isa in isas),
        *(Compilation(source, folder / f"{source.stem}.o", tuple(kernel_flags)) for source in others),
    ]


def run(command: Iterable[object], **environment: str) -> subprocess.CompletedProcess[str]:
    # Leaks are not looked for: that needs ptrace, which containers often refuse.
    env = {"PATH": os.environ["PATH"], "ASAN_OPTIONS": "detect_leaks=0", **environment}
    return subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, timeout=300)


def checked(command: Iterable[object]) -> None:
    done = run(command)
    assert done.returncode == 0, done.stderr


def compile_one(job: Compilation) -> None:
    macros = ["-DMTADAM_X86=1"] if IS_X86 else []
    checked(["g++", *FLAGS, *macros, *job.flags, "-c", job.source, "-o", job.object])


def link(folder: Path, objects: Iterable[Path], flags: Sequence[str] = ()) -> Path:
    program = folder / "test_kernels"
    checked(["g++", *flags, *objects, "-ldl", "-o", program])
    return program


def can_sanitize(folder: Path) -> bool:
    """Whether the sanitizers' libraries, which some systems package apart from the compiler, are there."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    return run(["g++", *ADDRESS, UNDEFINED, source, "-o", folder / "empty"]).returncode == 0


@dataclass(frozen=True)
class Programs:
    plain: Path
    sanitized: Path | None
    contracted: Path | None  # its AVX2 loops fuse multiplications and additions, which setup.py forbids


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    if not shutil.which("g++"):
        pytest.skip("no g++ to build the kernels' test program with")
    folder = tmp_path_factory.mktemp("native")
    sanitize = can_sanitize(folder)
    plain = compilations(folder / "plain", (), ())
    # Of the program only memory errors are looked for: with the checks for undefined behaviour, which are for the
    # kernels, compiling it takes three times as long.
    sanitized = compilations(folder / "sanitized", (*ADDRESS, UNDEFINED), ADDRESS) if sanitize else []
    (folder / "contracted").mkdir()
    contracted = [loops("avx2", folder / "contracted", ("-mfma", "-ffp-contract=fast"))] if IS_X86 else []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, [*sanitized, *plain, *contracted]))
    swapped = [job.object for job in plain if job.object.name != "avx2.o"] + [job.object for job in contracted]
    return Programs(
        link(folder / "plain", [job.object for job in plain]),
        link(folder / "sanitized", [job.object for job in sanitized], (*ADDRESS, UNDEFINED)) if sanitize else None,
        link(folder / "contracted", swapped) if IS_X86 else None,
    )


@dataclass(frozen=True)
class Outcome:
    done: subprocess.CompletedProcess[str]

    def printed(self, name: str) -> str:
        """The value of the line ``name=value``."""
        return next(line.partition("=")[2] for line in self.done.stdout.splitlines() if line.startswith(f"{name}="))

    def check(self) -> None:
        """No failed check, which the program and the sanitizers report to stderr."""
        assert (self.done.returncode, self.done.stderr) == (0, "")


Outcomes = dict[str, Outcome]


@pytest.fixture(scope="module")
def outcomes(programs: Programs) -> Outcomes:
    """What each run of all of the program's tests gave, side by side because each takes seconds."""
    runs: dict[str, tuple[Path | None, str]] = {
        "sanitized": (programs.sanitized, CAPABILITIES[-1]),
        **{capability: (programs.plain, capability) for capability in CAPABILITIES},
        "contracted": (programs.contracted, "avx2"),
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {
            name: pool.submit(run, [program], ATEN_CPU_CAPABILITY=capability)
            for name, (program, capability) in runs.items()
            if program and (name != "contracted" or has_fma())
        }
    return {name: Outcome(future.result()) for name, future in running.items()}


def has_fma() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " fma " in cpuinfo.read_text()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_match_oracle(outcomes: Outcomes, capability: str) -> None:
    outcome = outcomes[capability]
    outcome.check()
    if outcome.printed("instruction_set") != capability:
        pytest.skip(f"this machine lacks {capability}: the kernels ran with {outcome.printed('instruction_set')}")
    assert outcome.printed("hash") == outcomes["default"].printed("hash")


def test_sanitizers_find_nothing(outcomes: Outcomes) -> None:
    if "sanitized" not in outcomes:
        pytest.skip("g++ cannot link the sanitizers: install libasan and libubsan")
    outcomes["sanitized"].check()
    assert outcomes["sanitized"].printed("hash") == outcomes["default"].printed("hash")


def test_hash_tells_contraction(outcomes: Outcomes) -> None:
    """Negative control: loops that round a multiplication and an addition once pass the oracle, but not the hash."""
    if "contracted" not in outcomes or outcomes["contracted"].printed("instruction_set") != "avx2":
        pytest.skip("this machine has no AVX2 with fused multiply-add")
    outcomes["contracted"].check()
    assert outcomes["contracted"].printed("hash") != outcomes["default"].printed("hash")


@pytest.mark.parametrize("buffer", BUFFERS)
def test_sanitizer_sees_overrun(programs: Programs, buffer: str) -> None:
    """Negative control: one element too far is reported, in the kernels."""
    if programs.sanitized is None:
        pytest.skip("g++ cannot link the sanitizers: install libasan and libubsan")
    done = run([programs.sanitized, "--overrun", buffer, "heap"])
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert LOOPS.name in done.stderr


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("buffer", BUFFERS)
def test_guard_sees_overrun(programs: Programs, buffer: str, capability: str) -> None:
    """Negative control: the vectorised loops, which the sanitizers' build does not have, end at a guard page too."""
    done = run([programs.plain, "--overrun", buffer, "guard"], ATEN_CPU_CAPABILITY=capability)
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("placement", ["heap", "guard"])
def test_exact_buffers_survive(programs: Programs, placement: str) -> None:
    """The control of the negative controls: nothing is reported when no buffer is short."""
    for program in filter(None, (programs.plain, programs.sanitized)):
        done = run([program, "--overrun", "none", placement])
        assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")
