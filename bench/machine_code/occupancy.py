"""How many threads a multiprocessor holds, and how many bytes must be in flight there (Little's law)."""

from dataclasses import dataclass

# The same on compute capability 8.0, 9.0 and 10.0: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability".
REGISTERS = 65536
WARPS = 64
BLOCKS = 32
WARP_SIZE = 32
REGISTERS_AT_ONCE = 256  # a warp gets a multiple of these
WARPS_AT_ONCE = 4  # one for each of the four parts that a multiprocessor has
RESERVED = 1024  # bytes of shared memory that CUDA takes for each block
SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}


@dataclass(frozen=True)
class Gpu:
    """A GPU, and the bytes that must be in flight on each multiprocessor to keep its memory busy.

    The bandwidth is from NVIDIA's data sheets. The bytes are from NVIDIA's CUB (`min_bytes_in_flight` in its tuning of
    DeviceTransform, with the H100's in a comment), which was tuned by measuring copies and sums.
    """

    name: str
    architecture: int
    bandwidth: float  # bytes per second
    multiprocessors: int
    needed: int  # bytes

    @property
    def latency(self) -> float:
        """Return the seconds that a load takes when memory is as busy as this."""
        return self.needed * self.multiprocessors / self.bandwidth


GPUS = (
    Gpu("A100", 80, 2.039e12, 108, 16 * 1024),  # SXM, 80 GB
    Gpu("H100", 90, 3.35e12, 132, 32 * 1024),  # SXM
    Gpu("B200", 100, 8.0e12, 148, 64 * 1024),
)


def resident_threads(registers: int, shared: int, threads: int, architecture: int) -> int:
    """Return how many threads a multiprocessor holds at once, of blocks of so many with so many registers each."""
    warps = -(-threads // WARP_SIZE)
    registers_of_warp = -(-registers * WARP_SIZE // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    warps_by_registers = REGISTERS // registers_of_warp // WARPS_AT_ONCE * WARPS_AT_ONCE
    blocks = min(BLOCKS, min(WARPS, warps_by_registers) // warps, SHARED[architecture] // (shared + RESERVED))
    return blocks * warps * WARP_SIZE
