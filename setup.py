"""Builds the native module where a C++ compiler is found; without one the package installs and runs in pure PyTorch.

CUDA kernels are built too where nvcc is found: in CUDA_HOME, else on PATH. MTADAM_FUSED_CUDA_ARCHITECTURES (such as
"80;90") says for which GPUs; by default for those of this machine, or for the usual ones where it has none.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

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


def say(text: str) -> None:
    """Prints where `pip -v` shows it, and pip itself if the installation fails."""
    print(f"mtadam_fused: {text}", file=sys.stderr)


def find_nvcc() -> str | None:
    """The CUDA compiler, if there is one."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return next(filter(None, (shutil.which("nvcc", path=f"{home}/bin") for home in homes)), shutil.which("nvcc"))


def architectures() -> list[str]:
    """Compute capabilities to compile for, such as "90", ascending."""
    if wanted := os.environ.get("MTADAM_FUSED_CUDA_ARCHITECTURES"):
        return sorted(wanted.replace(",", ";").split(";"), key=int)
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        found = []
    return sorted({cap.replace(".", "") for cap in found}, key=int) or USUAL_ARCHITECTURES


def library_folders() -> list[str]:
    """Linker flags for the folders that nvcc itself links from, wherever it is installed."""
    plan = subprocess.run([find_nvcc() or "nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    return re.findall(r'"(-L[^"]+)"', plan.stderr)


class BuildNative(build_ext):
    """Compiles `LOOPS` once per instruction set, and leaves out, loudly, what a compiler fails on."""

    def build_extension(self, ext: Extension) -> None:
        cuda = self.compile_cuda()
        try:
            self.link(ext, self.compile(ext, bool(cuda)) + cuda, bool(cuda))
        except (CCompilerError, ExecError, PlatformError) as error:
            say(f"the native module is LEFT OUT, because the C++ compiler failed: {error}")
            say("the package will run in pure PyTorch. Install g++ and Python's headers (python3-dev), and reinstall.")

    def compile_cuda(self) -> list[str]:
        """The objects of csrc/cuda, none where they cannot be built."""
        nvcc = find_nvcc()
        if nvcc is None:
            say("no nvcc in CUDA_HOME or on PATH: the CUDA kernels are left out")
            return []
        archs = architectures()
        say(f"compiling the CUDA kernels for {', '.join(archs)} with {nvcc}")
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # for GPUs to come
        objects = []
        for source in sorted(Path("csrc/cuda").glob("*.cu")):
            target = Path(self.build_temp, "cuda", f"{source.stem}.o")
            target.parent.mkdir(parents=True, exist_ok=True)
            done = subprocess.run([nvcc, *NVCC_FLAGS, *codes, "-c", str(source), "-o", str(target)], check=False)
            if done.returncode:
                say(f"the CUDA kernels are LEFT OUT, because nvcc failed on {source}; the CPU kernels are built alone")
                return []
            objects.append(str(target))
        return objects

    def compile(self, ext: Extension, cuda: bool) -> list[str]:
        macros = [("MTADAM_X86", "1")] if IS_X86 else []
        macros.append(("MTADAM_COMPILER", "__VERSION__"))
        if cuda:
            macros.append(("MTADAM_CUDA", f'"sm_{", sm_".join(architectures())}"'))
        sources = [source for source in ext.sources if source != LOOPS]
        objects = self.run_compiler(ext, sources, macros, [], "cuda" if cuda else "")
        for isa, flags in INSTRUCTION_SETS.items():
            if isa == "baseline" or IS_X86:
                objects += self.run_compiler(ext, [LOOPS], [*macros, ("MTADAM_ISA", isa)], flags, isa)
        return objects

    def run_compiler(self, ext: Extension, sources: list, macros: list, flags: list, folder: str) -> list[str]:
        return self.compiler.compile(
            sources,
            output_dir=str(Path(self.build_temp, folder)),
            macros=macros,
            include_dirs=[*ext.include_dirs, *self.compiler.include_dirs],
            extra_postargs=[*FLAGS, *flags],
            depends=ext.depends,
        )

    def link(self, ext: Extension, objects: list[str], cuda: bool) -> None:
        libraries, flags = ["dl"], ["-s"]
        if cuda:
            libraries = ["cudart_static", "dl", "rt", "pthread"]
            flags += [*library_folders(), "-Wl,--exclude-libs,ALL"]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), libraries=libraries, target_lang="c++", extra_postargs=flags
        )


native = Extension(
    "mtadam_fused._C",
    sources=["csrc/bindings.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))],
    depends=sorted(str(path) for pattern in ("*.h", "*.cuh") for path in Path("csrc").rglob(pattern)),
    include_dirs=[pybind11.get_include()],
    optional=True,  # else an editable install looks for what could not be built
)

setup(ext_modules=[native], cmdclass={"build_ext": BuildNative})
