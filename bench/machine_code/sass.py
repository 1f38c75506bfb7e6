"""Machine code as cuobjdump, which comes with Triton, prints it: functions, their resources, their instructions.

NVIDIA documents no encoding. Where the control bits of an instruction are was found by measuring (Jia et al., arXiv
1804.06826, section 2): in the upper 64 of its 128 bits, from bit 41 on. A test checks this against the registers that
the instructions name.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

# After 4 bits of stall and 1 of yield: the scoreboard that a result sets, one for operands that were read, and six bits
# for those to wait for.
CONTROL = 41
SETS, WAITS = CONTROL + 5, CONTROL + 11
NO_SCOREBOARD = 7

_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;?\s*/\* 0x[0-9a-f]{16} \*/\s+"
    r"/\* (0x[0-9a-f]{16}) \*/"
)
_RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+) .*?CONSTANT\[0\]:(\d+)")
_BITS = re.compile(r"\.(?:U|S)?(8|16|64|128|256)\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction, such as ``@!P0 LDG.E.128 R4, desc[UR8][R2.64]``."""

    address: int
    predicate: str  # empty if it always runs
    opcode: str  # with its modifiers
    operands: str
    control: int  # the upper 64 bits of the encoding

    @property
    def is_load(self) -> bool:
        """Return whether it loads from global memory."""
        return self.opcode.startswith(("LDG.", "LD."))

    @property
    def width(self) -> int:
        """Return the bytes that a load moves for a thread."""
        return width_of(self.opcode)

    @property
    def scoreboard(self) -> int | None:
        """Return the scoreboard, 0 to 5, that counts it until its result is there."""
        number = self.control >> SETS & 7
        return None if number == NO_SCOREBOARD else number

    @property
    def waits(self) -> int:
        """Return the scoreboards that must be empty before it starts, as six bits."""
        return self.control >> WAITS & 63

    @property
    def destination(self) -> str:
        """Return the first register that a load writes."""
        return self.operands.partition(",")[0]

    @property
    def target(self) -> int | None:
        """Return the address that a branch or a call may continue at."""
        if not self.opcode.startswith(("BRA", "CALL.REL")):
            return None
        return int(self.operands.rpartition("0x")[2], 16)

    @property
    def may_continue(self) -> bool:
        """Return whether the next instruction may follow: not after a branch that is always taken. A call returns."""
        if self.opcode.startswith("BRA"):
            return bool(self.predicate) or "," in self.operands
        return bool(self.predicate) or not self.opcode.startswith(("EXIT", "RET", "BRX", "JMX"))


@dataclass(frozen=True)
class Function:
    """A kernel for one architecture."""

    name: str  # mangled
    architecture: int  # such as 90
    registers: int
    stack: int
    shared: int
    argument: int  # bytes, and what else is in the same bank of constants
    code: tuple[Instruction, ...] = ()

    @cached_property
    def leaves_registers(self) -> bool:
        """Return whether anything is kept in memory of the thread instead: a spill, or a stack."""
        return self.stack > 0 or any(i.opcode.startswith(("LDL", "STL")) for i in self.code)


def width_of(opcode: str) -> int:
    """Return the bytes that a load's opcode moves for a thread."""
    bits = _BITS.search(opcode)
    return int(bits[1]) // 8 if bits else 4


def find_cuobjdump() -> Path | None:
    """Return the program in Triton's package, if it is there."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return path if path.exists() else None


def cuobjdump(*options: str) -> str:
    """Return what the program prints."""
    program = find_cuobjdump()
    if program is None:
        raise FileNotFoundError("no cuobjdump in Triton's package: install triton 3.6 for x86-64 Linux")
    done = subprocess.run([str(program), *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {' '.join(options)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def parse_code(text: str) -> tuple[Instruction, ...]:
    """Parse the instructions of one function."""
    return tuple(
        Instruction(int(address, 16), predicate, opcode, operands, int(control, 16))
        for address, predicate, opcode, operands, control in _INSTRUCTION.findall(text)
    )


def read_resources(binary: Path, architecture: int) -> list[Function]:
    """Return the functions in a module or a cubin, without their code."""
    found = _RESOURCES.findall(cuobjdump("-res-usage", "-arch", f"sm_{architecture}", str(binary)))
    return [
        Function(name, architecture, int(registers), int(stack) + int(local), int(shared), int(argument))
        for name, registers, stack, shared, local, argument in found
    ]


def disassemble(binary: Path, functions: Sequence[Function]) -> list[Function]:
    """Return functions of one architecture with their code."""
    names = ",".join(function.name for function in functions)
    text = cuobjdump("-sass", "-arch", f"sm_{functions[0].architecture}", "-fun", names, str(binary))
    _, *pairs = _FUNCTION.split(text)
    code = {name: parse_code(listing) for name, listing in zip(pairs[::2], pairs[1::2], strict=True)}
    return [replace(function, code=code[function.name]) for function in functions]
