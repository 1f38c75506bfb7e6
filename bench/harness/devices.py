"""The devices to benchmark: how to time a run there, measure its memory, and name the machine."""

import ctypes
import os
import platform
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import pytest
import torch

Callback = Callable[[], object]

COMPILE_SECONDS = 100


@dataclass(frozen=True)
class Sample:
    """Seconds of one run."""

    device: float  # from first to last instruction on the device
    host: float  # until the call returned; on the CPU the same


class Device(Protocol):
    """A device to benchmark."""

    torch_device: torch.device
    slow_limit: float  # elements x terms beyond which peers that take many passes are left out
    loop_limit: float  # tensors x terms beyond which peers that loop over them are left out
    compile_seconds: int  # that torch.compile may take for a contender

    @property
    def slug(self) -> str:
        """Return the name of the machine's folder of records."""

    def facts(self) -> dict[str, object]:
        """Describe the machine."""

    def time(self, prepare: Callback, run: Callback) -> Sample:
        """Time one run. ``prepare`` is called before it, and before it is repeated."""

    def synchronize(self) -> None:
        """Wait until the device has finished."""

    def free(self) -> int:
        """Return the bytes that can still be allocated."""

    def peak(self, run: Callback) -> int | None:
        """Return by how many bytes ``run`` raised the peak of memory. None if not measurable."""


class CpuDevice:
    """The CPU; see :class:`Device`."""

    torch_device = torch.device("cpu")
    slow_limit = 2.6e8  # two seconds a turn for the published loop
    loop_limit = float("inf")

    def __init__(self, compile_seconds: int = COMPILE_SECONDS) -> None:
        self.compile_seconds = compile_seconds

    @property
    def slug(self) -> str:
        return "-".join(["cpu", *re.findall("[a-z0-9]+", cpu_model().lower())[:1]])  # its make: cpu-amd, cpu-intel

    def facts(self) -> dict[str, object]:
        return {"cpu_model": cpu_model(), "gpu": "", "driver": "", **software()}

    def time(self, prepare: Callback, run: Callback) -> Sample:
        prepare()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        return Sample(seconds, seconds)

    def synchronize(self) -> None:
        """Return at once: a CPU has finished."""

    def free(self) -> int:
        meminfo = Path("/proc/meminfo")
        if not meminfo.exists():
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return 1024 * int(line.split()[1])

    def peak(self, run: Callback) -> int | None:
        try:
            ctypes.CDLL(None).malloc_trim(0)  # returns what is free, which a run could use again unseen
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        except (AttributeError, OSError):  # not Linux with glibc, or not permitted
            run()
            return None
        run()
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) - held


class CudaDevice:
    """A CUDA device; see :class:`Device`. It times each run twice: on the host when idle, by events when busy."""

    torch_device = torch.device("cuda", 0)
    slow_limit = float("inf")
    loop_limit = 700.0  # a loop launches some twenty kernels for each

    def __init__(self, compile_seconds: int = COMPILE_SECONDS) -> None:
        self.compile_seconds = compile_seconds
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        cache = torch.cuda.get_device_properties(self.torch_device).L2_cache_size
        self._flush = torch.empty(2 * cache, dtype=torch.uint8, device=self.torch_device)

    @property
    def slug(self) -> str:
        return re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name(self.torch_device).lower()).strip("-")

    def facts(self) -> dict[str, object]:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        driver = ""
        if shutil.which(query[0]):
            driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        gpu = torch.cuda.get_device_name(self.torch_device)
        return {"cpu_model": cpu_model(), "gpu": gpu, "driver": driver, **software()}

    def time(self, prepare: Callback, run: Callback) -> Sample:
        prepare()
        self.synchronize()
        before = time.perf_counter()
        run()
        host = time.perf_counter() - before
        self.synchronize()
        prepare()
        self._flush.zero_()  # leaves nothing of the tensors in the L2 cache
        # Keeps the device busy while the host enqueues the run, so that the events do not see the host's time.
        torch.cuda._sleep(int(2e9 * min(2 * host + 1e-4, 0.2)))  # cycles, at about 2 GHz
        start, end = self._events
        start.record()
        run()
        end.record()
        end.synchronize()
        return Sample(start.elapsed_time(end) / 1e3, host)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def free(self) -> int:
        torch.cuda.empty_cache()
        # After a capture that failed the cache keeps what it has.
        cached = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        return torch.cuda.mem_get_info(self.torch_device)[0] + cached

    def peak(self, run: Callback) -> int:
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        held = torch.cuda.memory_allocated(self.torch_device)
        run()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.torch_device) - held


@contextmanager
def capture_graph(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Capture the body in a CUDA graph. Restore the stream also if that fails, which torch does not."""
    before = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            yield
    finally:
        torch.cuda.set_stream(before)


def select_device(name: str, compile_seconds: int) -> Device:
    """Return the device named "cpu", "cuda", or "auto": the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device; use --device cpu")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return CudaDevice(compile_seconds)
    return CpuDevice(compile_seconds)


def cpu_model() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def software() -> dict[str, object]:
    """Return versions, and the number of threads."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return ""

    return {
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": installed("triton"),
    }
