"""The machine code of the GPU kernels: nothing leaves the registers, and enough loads are in flight. Needs no GPU."""

import pytest

from bench.machine_code.compiled import Compiled, NativeModule, compile_triton
from bench.machine_code.judge import judge
from bench.machine_code.kernels import ARCHITECTURES, CUDA, TRITON, HotLoop
from bench.machine_code.sass import find_cuobjdump

pytestmark = [
    pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump in Triton's package"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def native() -> list[Compiled]:
    try:
        module = NativeModule.find()
    except LookupError as error:
        pytest.skip(str(error))
    return [each for arch in ARCHITECTURES for each in module.read(CUDA, arch)]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> list[Compiled]:
    pytest.importorskip("triton", "3.6", reason="oracles/absent_gpu.py knows this Triton's driver")
    return compile_triton(tmp_path_factory.mktemp("triton"))


def named(loop: HotLoop) -> str:
    return loop.name.replace(" ", "_")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("loop", CUDA, ids=named)
def test_cuda_loads_are_in_flight_together(loop: HotLoop, arch: int, native: list[Compiled]) -> None:
    check(loop, arch, native)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("loop", TRITON, ids=named)
def test_triton_loads_are_in_flight_together(loop: HotLoop, arch: int, triton: list[Compiled]) -> None:
    check(loop, arch, triton)


def check(loop: HotLoop, arch: int, compiled: list[Compiled]) -> None:
    """Check a loop. That it loads in the widths which it should is what it was found by."""
    result = judge(loop, compiled, arch)
    assert not result.function.leaves_registers
    assert result.flight.pending >= dict(zip(ARCHITECTURES, loop.least, strict=True))[arch]
