"""A GPU for Triton that is not there: kernels are compiled for it, loaded and launched nowhere."""

from types import SimpleNamespace
from typing import Any

from triton.backends.compiler import GPUTarget


class AbsentGpu:
    """A driver of Triton for one NVIDIA GPU, to be made current by ``triton.runtime.driver.set_active``.

    Args:
        architecture: compute capability, such as 90. It is also the device's number, because Triton keeps what it
            compiled for each.
    """

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.utils = SimpleNamespace(
            get_device_properties=lambda _: {"max_shared_mem": 99 * 1024}, load_binary=lambda *_: (0, 0, 0, 0, 1024)
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, _: int) -> int:
        return 0

    def launcher_cls(self, *_: Any) -> Any:
        return lambda *_: None
