"""Build the native module where a C++ compiler is found; without one the package installs and runs in pure PyTorch.

CUDA kernels are built too where nvcc is found: in CUDA_HOME, else on PATH. MTADAM_FUSED_CUDA_ARCHITECTURES (such as
"80;90") says for which GPUs; by default for those of this machine, or for the usual ones where it has none. "usual"
takes those in any case, as wheels need it.

Ninja runs the compilers, at most MAX_JOBS at a time. What they built stays in build/native-*, so that the next build
compiles only what has changed. `python -m mtadam_fused` shows what was built: beside the module, or in its place, lies
a file that says so.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TextIO

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# pip installs these, unless it is told not to.
INSTALL = "Before --no-build-isolation, run: pip install 'setuptools>=77' 'pybind11>=2.12' ninja"
if int(setuptools.__version__.partition(".")[0]) < 77:
    sys.exit(f"mtadam_fused: setuptools {setuptools.__version__} is too old. {INSTALL}")
try:
    import pybind11
    from ninja import BIN_DIR
    from ninja.ninja_syntax import Writer
except ImportError as error:
    sys.exit(f"mtadam_fused: {error}. {INSTALL}")

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

# The inner loops are compiled once per instruction set, and the module takes the best that the machine has. Contraction
# is off so that all of them, on every machine, round alike.
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}
LOOPS = "csrc/cpu/blocks.cpp"
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

NVCC_FLAGS = ["-std=c++17", "-O3", "--compiler-options=-fPIC,-fvisibility=hidden"]
USUAL_ARCHITECTURES = ["80", "90", "100"]

# Not setuptools' build_temp: in an editable install that is a new folder each time.
FOLDER = Path("build", f"native-{sysconfig.get_config_var('SOABI')}")
VERSIONS = FOLDER / "versions.txt"
INCLUDE = FOLDER / "include"
FACTS = "_build.json"  # in the package

NO_NVCC = "no nvcc in CUDA_HOME or on PATH"
SHOW = "pip install -v shows its messages"


def say(text: str) -> None:
    """Print where `pip -v` shows it, and pip itself if the installation fails."""
    print(f"mtadam_fused: {text}", file=sys.stderr)


def find_nvcc() -> str | None:
    """Return the CUDA compiler, if there is one."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return next(filter(None, (shutil.which("nvcc", path=f"{home}/bin") for home in homes)), shutil.which("nvcc"))


def architectures() -> list[str]:
    """Return the compute capabilities to compile for, such as "90", ascending."""
    wanted = os.environ.get("MTADAM_FUSED_CUDA_ARCHITECTURES")
    if wanted == "usual":
        return USUAL_ARCHITECTURES
    if wanted:
        return sorted(wanted.replace(",", ";").split(";"), key=int)
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        shown = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        shown = ""
    found = re.findall(r"^(\d+)\.(\d+)\s*$", shown, re.MULTILINE)  # not "[N/A]", of a GPU that does not say
    return sorted({major + minor for major, minor in found}, key=int) or USUAL_ARCHITECTURES


def instruction_sets() -> list[str]:
    """Return the instruction sets that the inner loops are compiled for."""
    return list(INSTRUCTION_SETS) if IS_X86 else ["baseline"]


def library_folders(nvcc: str) -> list[str]:
    """Return linker flags for the folders that nvcc itself links from, wherever it is installed."""
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    return re.findall(r'"(-L[^"]+)"', plan.stderr)


def quote(words: Iterable[str]) -> str:
    """Return words of a command as ninja hands them to the shell."""
    return shlex.join(words).replace("$", "$$")


def show_version(compiler: list[str]) -> str:
    """Return what a compiler prints as its version."""
    return subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout


def describe_version(shown: str) -> str:
    """Return a compiler's name and version, from what `show_version` returned."""
    if of_nvcc := re.search(r"^Cuda compilation tools, .* V([\d.]+)$", shown, re.MULTILINE):
        return f"nvcc {of_nvcc[1]}"
    return shown.partition("\n")[0] or "a compiler that does not say its version"


def write_versions(shown: Iterable[str]) -> None:
    """Make `VERSIONS` newer than all that other versions of the compilers or of pybind11 built."""
    text = "".join([*shown, f"pybind11 {pybind11.__version__}\n"])
    if not VERSIONS.exists() or VERSIONS.read_text() != text:
        VERSIONS.write_text(text)


def link_pybind11() -> None:
    """Lend pybind11's headers a path that stays: pip unpacks them into a new folder for each build."""
    INCLUDE.mkdir(parents=True, exist_ok=True)
    link = INCLUDE / "pybind11"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(pybind11.get_include(), "pybind11"))


class BuildFile:
    """The ninja file: what is compiled, from what, and how.

    The methods add objects and modules to it, and return their paths.
    """

    def __init__(self, file: TextIO, cxx: list[str], linker: list[str], include_dirs: list[str]) -> None:
        self.writer = Writer(file)
        self.writer.variable("builddir", str(FOLDER))
        self.includes = ["-isystem", str(INCLUDE), *(f"-I{folder}" for folder in include_dirs)]
        cxx = [*cxx, "-g0", *FLAGS]  # the linker would strip what Python's own -g adds
        self.add_compiler("cxx", [*cxx, "-DMTADAM_X86=1"] if IS_X86 else cxx)
        self.writer.rule("link", f"{quote(linker)} $in -o $out $flags", description="link $out")

    def add_compiler(self, rule: str, command: list[str]) -> None:
        """Add a rule whose depfiles name the headers that a source includes, but for the system's and pybind11's."""
        line = f"{quote(command)} $flags -MMD -MF $out.d -c $in -o $out"
        self.writer.rule(rule, line, description=f"{rule} $out", depfile="$out.d", deps="gcc")

    def add(self, rule: str, sources: list[str], name: str, flags: Iterable[str] = ()) -> str:
        """Add what a rule makes of the sources, and return its path."""
        target = str(FOLDER / name)
        self.writer.build([target], rule, sources, [str(VERSIONS)], variables={"flags": quote(flags)})
        return target

    def add_bindings(self, name: str, flags: Iterable[str] = ()) -> str:
        flags = ["-DMTADAM_COMPILER=__VERSION__", *self.includes, *flags]
        return self.add("cxx", ["csrc/bindings.cpp"], name, flags)

    def add_cpu_kernels(self) -> list[str]:
        isas = instruction_sets()
        flags = {f"{Path(LOOPS).stem}.{isa}": [f"-DMTADAM_ISA={isa}", *INSTRUCTION_SETS[isa]] for isa in isas}
        loops = [self.add("cxx", [LOOPS], f"cpu/{name}.o", flags[name]) for name in flags]
        others = sorted(source for source in Path("csrc/cpu").glob("*.cpp") if source != Path(LOOPS))
        return [*loops, *(self.add("cxx", [str(source)], f"cpu/{source.stem}.o") for source in others)]

    def add_cuda_kernels(self, nvcc: str, archs: list[str]) -> list[str]:
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # for GPUs to come
        self.add_compiler("nvcc", [nvcc, *NVCC_FLAGS, *codes])
        sources = sorted(Path("csrc/cuda").glob("*.cu"))
        return [self.add("nvcc", [str(source)], f"cuda/{source.stem}.o") for source in sources]

    def add_modules(self, nvcc: str | None, archs: list[str]) -> list[str]:
        """Add the module with CUDA kernels, if nvcc is there, and the one without."""
        cuda = self.add_cuda_kernels(nvcc, archs) if nvcc else []  # first, because they take longest
        cpu = self.add_cpu_kernels()
        modules = [self.add("link", [self.add_bindings("cpu/bindings.o"), *cpu], "cpu.so", ["-ldl", "-s"])]
        if nvcc:
            bindings = self.add_bindings("cuda/bindings.o", [f'-DMTADAM_CUDA="sm_{", sm_".join(archs)}"'])
            libraries = ["-lcudart_static", "-ldl", "-lrt", "-lpthread", *library_folders(nvcc)]
            flags = [*libraries, "-s", "-Wl,--exclude-libs,ALL"]
            modules.insert(0, self.add("link", [bindings, *cpu, *cuda], "cuda.so", flags))
        return modules


def run_ninja(target: str) -> bool:
    """Build a target, the compilers' messages shown as they come; return whether it was built."""
    jobs = os.environ.get("MAX_JOBS", "")
    command = [os.path.join(BIN_DIR, "ninja"), "-f", str(FOLDER / "build.ninja"), target]
    sys.stdout.flush()  # else what was printed before comes after
    return subprocess.run([*command, *(["-j", jobs] if jobs.isdigit() else [])]).returncode == 0


class Plan(NamedTuple):
    """What the ninja file can build, and with what."""

    modules: list[str]  # the best first
    cxx: str  # version
    nvcc: str = ""  # version, empty if there is none
    archs: tuple[str, ...] = ()

    def facts(self, built: str | None, details: str) -> dict[str, object]:
        """Return what `FACTS` says of a build.

        Args:
            built: the module, None if there is none.
            details: what to add where there is none.
        """
        problem = f"the C++ compiler failed{details}"
        facts: dict[str, object] = {"cpu": {"left_out": problem}, "cuda": {"left_out": problem}}
        if built:
            facts["cpu"] = {"compiler": self.cxx, "instruction_sets": instruction_sets()}
            facts["cuda"] = {"left_out": f"nvcc failed; {SHOW}" if self.nvcc else NO_NVCC}
            if self.nvcc and built == self.modules[0]:
                facts["cuda"] = {"compiler": self.nvcc, "architectures": [f"sm_{arch}" for arch in self.archs]}
        return facts


class BuildNative(build_ext):
    """Build the native module, and leave out, loudly, what a compiler fails on."""

    def build_extension(self, ext: Extension) -> None:
        try:
            plan, reason = self.write_build_file(), "its messages are above"
        except OSError as error:
            plan, reason = Plan([], ""), str(error)
        built = next(filter(run_ninja, plan.modules), None)
        self.write_facts(ext, plan.facts(built, f"; {SHOW}" if plan.modules else f": {reason}"))
        if built is None:
            say(f"the native module is LEFT OUT, because the C++ compiler failed: {reason}")
            say("the package will run in pure PyTorch. Install g++ and Python's headers (python3-dev), and reinstall.")
            self.remove_old(ext)
            return
        if built != plan.modules[0]:
            say("the CUDA kernels are LEFT OUT, because nvcc failed (see above); the CPU kernels are built alone")
        # With a new time, else setuptools keeps the one that an editable install has.
        shutil.copy(built, self.get_ext_fullpath(ext.name))

    def write_build_file(self) -> Plan:
        """Write the ninja file; return what it can build."""
        cxx = getattr(self.compiler, "compiler_so_cxx", ["g++"])  # Visual C++ has none
        linker = getattr(self.compiler, "linker_so_cxx", ["g++", "-shared"])
        nvcc = find_nvcc()
        archs = architectures() if nvcc else []
        if nvcc:
            say(f"compiling the CUDA kernels for {', '.join(archs)} with {nvcc}")
        else:
            say(f"{NO_NVCC}: the CUDA kernels are left out")
        FOLDER.mkdir(parents=True, exist_ok=True)
        shown = [show_version(compiler) for compiler in ([cxx, [nvcc]] if nvcc else [cxx])]
        write_versions(shown)
        link_pybind11()
        with open(FOLDER / "build.ninja", "w") as file:
            modules = BuildFile(file, cxx, linker, self.compiler.include_dirs).add_modules(nvcc, archs)
        return Plan(modules, *map(describe_version, shown), archs=tuple(archs))

    def module_paths(self, ext: Extension) -> list[Path]:
        """Return where the module is installed from, and where an editable install has it."""
        paths = [Path(self.get_ext_fullpath(ext.name))]
        return [*paths, Path(self.get_ext_filename(ext.name))] if self.editable_mode else paths

    def write_facts(self, ext: Extension, facts: dict[str, object]) -> None:
        """Write `FACTS` beside the module."""
        for path in self.module_paths(ext):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(FACTS).write_text(json.dumps(facts, indent=1) + "\n")

    def remove_old(self, ext: Extension) -> None:
        """Remove the module of an earlier build, else it would be installed, or an editable install would import it."""
        for path in self.module_paths(ext):
            path.unlink(missing_ok=True)


def long_description() -> str:
    """Return README.md for a package index, where relative links lead nowhere.

    Where pyproject.toml names the repository on GitHub (``Repository = "https://..."``), they lead there, to the tag of
    the version. Else pictures are left out, and of links only their texts are left.
    """
    project = Path("pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    repository = re.search(r'^Repository = "(.+)"$', project, re.MULTILINE)

    def absolute(link: re.Match[str]) -> str:
        image, text, path = link.groups()
        if not (repository and version):
            return "" if image else text
        return f"{image}[{text}]({repository[1]}/{'raw' if image else 'blob'}/v{version[1]}/{path})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)", absolute, Path("README.md").read_text())


setup(
    # Its sources are the ninja file's. Optional, else an editable install looks for what could not be built.
    ext_modules=[Extension("mtadam_fused._C", sources=[], optional=True)],
    cmdclass={"build_ext": BuildNative},
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
