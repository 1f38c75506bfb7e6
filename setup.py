"""Builds the native module where a C++ compiler is found; without one the package installs and runs in pure PyTorch."""

import platform
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


class BuildNative(build_ext):
    """Compiles `LOOPS` once per instruction set, and leaves the module out, loudly, where the compiler fails."""

    def build_extension(self, ext: Extension) -> None:
        try:
            self.link(ext, self.compile(ext))
        except (CCompilerError, ExecError, PlatformError) as error:
            print(
                f"\nmtadam_fused: the native module is LEFT OUT, because the C++ compiler failed: {error}\n"
                "mtadam_fused: the package will run in pure PyTorch. Install g++ and reinstall to get the kernels.\n",
                file=sys.stderr,
            )

    def compile(self, ext: Extension) -> list[str]:
        macros = [("MTADAM_X86", "1")] if IS_X86 else []
        macros.append(("MTADAM_COMPILER", "__VERSION__"))
        sources = [source for source in ext.sources if source != LOOPS]
        objects = self.run_compiler(ext, sources, macros, [], "")
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

    def link(self, ext: Extension, objects: list[str]) -> None:
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), libraries=["dl"], target_lang="c++", extra_postargs=["-s"]
        )


native = Extension(
    "mtadam_fused._C",
    sources=["csrc/bindings.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))],
    depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
    include_dirs=[pybind11.get_include()],
)

setup(ext_modules=[native], cmdclass={"build_ext": BuildNative})
