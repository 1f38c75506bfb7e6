"""The results as a Markdown page."""

from collections.abc import Mapping, Sequence

from bench.machine_code.judge import Result
from bench.machine_code.kernels import ARCHITECTURES, HotLoop
from bench.machine_code.occupancy import GPUS, Gpu
from bench.report.tables import Row, format_number, markdown

Found = Mapping[tuple[HotLoop, int], Result]  # by architecture

HEAD = """# What the machine code of the GPU kernels allows

**Computed from the machine code, not measured.** `make machine-code` disassembles the kernels and finds the loop in
which each reads its operands. The loop is followed for four terms that all reach the parameter, without AMSGrad.

* *Loads pending*: loads of data in flight at a time, on average over a turn of the loop.
* *KB in flight*: the bytes of these loads, for all threads that a multiprocessor holds.
* *A100*, *H100*, *B200*: the KB in flight, divided by those that keep the GPU's memory busy with a copy. That is the
  share of a copy's bandwidth that Little's law allows. A kernel can reach less, because it also computes, or more,
  where a cache helps.

Numbers separated by slashes are for {architectures}. "16-bit" is the worse of bfloat16 and float16, and bfloat16
for Triton."""

SOURCES = """Multiprocessors and GB/s are from NVIDIA's data sheets of the SXM modules. The KB needed are those by which
NVIDIA's CUB chooses how much its `DeviceTransform` loads at once. What a load takes on a busy GPU follows from them."""


def format_each(values: Sequence[float]) -> str:
    """Format a number of each architecture."""
    return " / ".join(format_number(value) for value in values)


def result_row(loop: HotLoop, results: Sequence[Result]) -> Row:
    """Return the row of a loop; ``results`` are in the order of the architectures."""
    shares = {
        gpu.name: f"{result.share_of_copy(gpu):.0%}"
        for gpu in GPUS
        for result in results
        if result.function.architecture == gpu.architecture
    }
    return {
        "kernel": loop.kernel,
        "parameters": loop.params,
        "registers": format_each([result.function.registers for result in results]),
        "loads pending": format_each([result.flight.pending for result in results]),
        "KB in flight": format_each([result.bytes_in_flight / 1024 for result in results]),
        **shares,
    }


def result_table(loops: Sequence[HotLoop], found: Found) -> str:
    """Format the loops of a backend."""
    return markdown([result_row(loop, [found[loop, arch] for arch in ARCHITECTURES]) for loop in loops])


def gpu_row(gpu: Gpu) -> Row:
    return {
        "GPU": gpu.name,
        "compiled for": f"sm_{gpu.architecture}",
        "multiprocessors": str(gpu.multiprocessors),
        "GB/s": format_number(gpu.bandwidth / 1e9),
        "KB in flight needed": format_number(gpu.needed / 1024),
        "so a load takes": f"{format_number(gpu.latency * 1e9)} ns",
    }


def page(tables: Mapping[str, str]) -> str:
    """Return the page with the tables of the backends, by their titles."""
    head = HEAD.format(architectures=", ".join(f"sm_{arch}" for arch in ARCHITECTURES))
    sections = [f"## {title}\n\n{table}" for title, table in tables.items()]
    gpus = f"## Assumed of the GPUs\n\n{markdown([gpu_row(gpu) for gpu in GPUS])}\n\n{SOURCES}"
    return "\n\n".join([head, *sections, gpus]) + "\n"
