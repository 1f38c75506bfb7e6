"""The machine code of the GPU kernels: nothing leaves the registers, and enough loads are in flight. Needs no GPU."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from bench.machine_code.__main__ import make_page
from bench.machine_code.compiled import Compiled, NativeModule, compile_triton
from bench.machine_code.in_flight import Flight, Kernel
from bench.machine_code.judge import Result, judge
from bench.machine_code.kernels import ARCHITECTURES, CUDA, FLOAT32, TRITON, HotLoop, plain
from bench.machine_code.occupancy import GPUS, resident_threads
from bench.machine_code.sass import (
    NO_SCOREBOARD,
    SETS,
    WAITS,
    Function,
    Instruction,
    disassemble,
    find_cuobjdump,
    read_resources,
)

PAGE = Path(__file__).parents[1] / "results" / "machine_code.md"

needs_cuobjdump = pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump in Triton's package")

# The first is as it should be. In the second, an address needs the value before it. The third copies 16 bytes as a
# struct, which the compiler takes apart. The fourth reads an array at an index that only the run knows.
CONTROLS = """
#define ARGUMENTS const float4 *a, const float4 *b, const float4 *c, const float4 *d, float4 *out, int n
#define LOOP _Pragma("unroll 1") for (int i = threadIdx.x; i < n; i += blockDim.x)
#define SUM make_float4(w.x + x.x + y.x + z.x, w.y + x.y + y.y + z.y, w.z + x.z + y.z + z.z, w.w + x.w + y.w + z.w)

extern "C" __global__ void together(ARGUMENTS) {
  LOOP {
    const float4 w = a[i], x = b[i], y = c[i], z = d[i];
    out[i] = SUM;
  }
}
extern "C" __global__ void in_turn(ARGUMENTS) {
  LOOP {
    const float4 w = a[i], x = b[i + int(w.x)], y = c[i + int(x.x)], z = d[i + int(y.x)];
    out[i] = SUM;
  }
}
struct Four { float x, y, z, w; };
extern "C" __global__ void narrow(const Four* a, const Four* b, const Four* c, const Four* d, float4* out, int n) {
  LOOP {
    const Four w = a[i], x = b[i], y = c[i], z = d[i];
    out[i] = SUM;
  }
}
extern "C" __global__ void spilling(ARGUMENTS) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = out[i * n].x;
  LOOP {
    const float4 w = a[i], x = b[i], y = c[i], z = d[i];
    out[i] = SUM;
    out[i].x += kept[(i * n) % 64];
  }
}
"""


@pytest.fixture(scope="module")
def module() -> NativeModule:
    try:
        return NativeModule.find()
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def native(module: NativeModule) -> list[Compiled]:
    return module.read_all(CUDA)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    pytest.importorskip("triton", "3.6", reason="oracles/absent_gpu.py knows this Triton's driver")
    return compile_triton(tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc on PATH")
    source = tmp_path_factory.mktemp("controls") / "controls.cu"
    source.write_text(CONTROLS)
    cubin = source.with_suffix(".cubin")
    subprocess.run(["nvcc", "-arch=sm_90", "-cubin", source, "-o", cubin], check=True)
    functions = disassemble(cubin, read_resources(cubin, 90))
    return [Compiled(Kernel(function), function.shared, threads=256) for function in functions]


def name_of(loop: HotLoop) -> str:
    return loop.name.replace(", ", "-").replace(" ", "_")


def check(loop: HotLoop, arch: int, compiled: Sequence[Compiled]) -> None:
    """Check a loop. It was found by the widths of its loads."""
    result = judge(loop, compiled, arch)
    assert not result.function.leaves_registers
    assert result.flight.pending >= dict(zip(ARCHITECTURES, loop.least, strict=True))[arch]


@needs_cuobjdump
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("loop", CUDA, ids=name_of)
def test_cuda_loads_are_in_flight_together(loop: HotLoop, arch: int, native: list[Compiled]) -> None:
    check(loop, arch, native)


@needs_cuobjdump
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("loop", TRITON, ids=name_of)
def test_triton_loads_are_in_flight_together(loop: HotLoop, arch: int, triton: list[Compiled]) -> None:
    check(loop, arch, triton)


@needs_cuobjdump
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_cuda_kernel_has_a_stack(arch: int, module: NativeModule) -> None:
    functions = read_resources(module.path, arch)
    assert len(functions) > len(CUDA)
    assert not [function.name for function in functions if function.leaves_registers]


def control(name: str) -> HotLoop:
    return HotLoop("control", FLOAT32, f"^{name}$", plain(4), (4.0, 4.0, 4.0))


@needs_cuobjdump
@pytest.mark.slow
def test_controls(controls: list[Compiled]) -> None:
    check(control("together"), 90, controls)
    for name in ("in_turn", "spilling"):
        with pytest.raises(AssertionError):
            check(control(name), 90, controls)
    with pytest.raises(LookupError, match=r"no loop has a turn with the loads 4 LDG\.E\.128"):
        check(control("narrow"), 90, controls)
    assert judge(control("in_turn"), controls, 90).flight.pending == 1
    assert judge(control("spilling"), controls, 90).function.leaves_registers


@needs_cuobjdump
@pytest.mark.slow
def test_page_is_what_is_computed(module: NativeModule, native: list[Compiled], triton: list[Compiled]) -> None:
    recorded = PAGE.read_text()
    if not {module.compiler, f"Triton {version('triton')}"} <= set(re.findall("nvcc [0-9.]+|Triton [0-9.]+", recorded)):
        pytest.skip("other compilers: make machine-code-record")
    assert recorded == make_page(module.compiler, native, triton)


# -- control bits ------------------------------------------------------------------------------------------------------


def too_early(kernel: Kernel) -> Iterator[bool]:
    """Yield, for each load, whether a register that it writes is named before its scoreboard is waited for."""
    for i, load in enumerate(kernel.code):
        if not load.is_load:
            continue
        first = re.fullmatch(r"R(\d+)", load.destination)
        assert first
        registers = range(int(first[1]), int(first[1]) + max(1, load.width // 4))
        named = re.compile(rf"\bR({'|'.join(map(str, registers))})\b")
        bit = 0 if load.scoreboard is None else 1 << load.scoreboard
        while kernel.successors[i] == [i + 1]:
            i += 1
            if kernel.code[i].waits & bit:
                yield False
                break
            if named.search(kernel.code[i].operands):
                yield True
                break


@needs_cuobjdump
@pytest.mark.slow
def test_control_bits_agree_with_the_registers(native: list[Compiled], triton: list[Compiled]) -> None:
    for compiled in (native, triton):
        found = [early for each in compiled for early in too_early(each.kernel)]
        assert len(found) > 500
        assert not any(found)
        shifted = (Kernel(shift_control(each.kernel.function)) for each in compiled)
        assert any(early for kernel in shifted for early in too_early(kernel))


def shift_control(function: Function) -> Function:
    """Return the function with the control bits one place off."""
    return replace(function, code=tuple(replace(each, control=each.control >> 1) for each in function.code))


# -- loads in flight ---------------------------------------------------------------------------------------------------

LOAD, USE = "LDG.E.128 R4, [R2.64]", "FADD R0, R4, R4"


def assemble(*lines: tuple[str, int | None, int]) -> Kernel:
    """Return the function of a loop over lines: text, the scoreboard that it sets, and bits of those it waits for."""
    code = [Instruction(0, "", "NOP", "", NO_SCOREBOARD << SETS)]
    for text, sets, waits in (*lines, ("@P0 BRA 0x10", None, 0), ("EXIT", None, 0)):
        predicate, opcode, operands = re.fullmatch(r"(?:@(\S+) )?(\S+) ?(.*)", text).groups(default="")  # type: ignore[union-attr]
        control = (NO_SCOREBOARD if sets is None else sets) << SETS | waits << WAITS
        code.append(Instruction(16 * len(code), predicate, opcode, operands, control))
    return Kernel(Function("loop", 90, 32, 0, 0, 0, tuple(code)))


@pytest.mark.parametrize(
    ("lines", "flight"),
    [
        pytest.param([(LOAD, 0, 0), (LOAD, 1, 0), (USE, None, 1), (USE, None, 2)], Flight(2, 32, 1), id="together"),
        pytest.param([(LOAD, 0, 0), (USE, None, 1), (LOAD, 0, 0), (USE, None, 1)], Flight(2, 32, 2), id="in turn"),
        pytest.param([(USE, None, 1), (LOAD, 0, 0), (LOAD, 0, 0)], Flight(2, 32, 1), id="for the next turn"),
        pytest.param([(LOAD, 0, 0), (USE, None, 2), (LOAD, 0, 0), (USE, None, 1)], Flight(2, 32, 1), id="another wait"),
        pytest.param(
            [(LOAD, 0, 0), ("@P1 BRA 0x40", None, 0), (LOAD, 0, 0), (USE, None, 1)], Flight(2, 32, 1), id="not always"
        ),
        pytest.param([(LOAD, 0, 0), (USE, None, 1)] * 4, Flight(4, 64, 4), id="twice"),
        pytest.param([(LOAD, 0, 0), (USE, None, 1)] * 3, None, id="one and a half times"),
        pytest.param([("LDG.E R4, [R2.64]", 0, 0), (USE, None, 1)], None, id="narrow"),
    ],
)
def test_waits_of_a_turn(lines: list[tuple[str, int | None, int]], flight: Flight | None) -> None:
    found = [flight for _, flight in assemble(*lines).find_hot_loops(plain(2))]
    assert found == ([] if flight is None else [flight])


# -- Little's law ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registers", "shared", "arch", "threads"),
    [
        (32, 0, 90, 2048),  # by the limit of warps
        (40, 0, 90, 1536),
        (63, 0, 90, 1024),
        (65, 0, 80, 768),
        (150, 0, 80, 256),
        (32, 40 * 1024, 80, 1024),  # by shared memory
        (32, 40 * 1024, 90, 1280),
    ],
)
def test_resident_threads(registers: int, shared: int, arch: int, threads: int) -> None:
    assert resident_threads(registers, shared, 256, arch) == threads


def test_share_of_a_copy() -> None:
    a100, h100, b200 = GPUS
    function = Function("kernel", 90, 32, 0, 0, 0)
    result = Result(CUDA[0], function, Flight(loads=2, bytes=32, waits=2), threads=2048)
    assert result.bytes_in_flight == 32 * 1024
    assert [result.share_of_copy(gpu) for gpu in (a100, h100, b200)] == [1.0, 1.0, 0.5]
    assert all(0.5e-6 < gpu.latency < 2e-6 for gpu in GPUS)
