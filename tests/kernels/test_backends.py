"""The choice of a backend; each backend's stages one by one."""

import copy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from mtadam_fused import MTAdam
from mtadam_fused.backends import (
    BACKENDS,
    Backend,
    CudaBackend,
    ReferenceBackend,
    TritonBackend,
    native,
    select_backend,
    statuses,
)
from mtadam_fused.backends.registry import STATUS
from mtadam_fused.tables import StepArgs
from tests.support.small_problem import OPTIMIZERS, start_training
from tests.support.stages import check_other_norms, check_stages


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_default_device_does_not_matter(name: str, backend: str) -> None:
    expected, training = (start_training(name, "cpu", backend, sizes=(1, 7, 300)) for _ in range(2))
    expected.step()
    with torch.device("meta"):  # where nothing can be read
        training.optimizer.load_state_dict(training.optimizer.state_dict())
        training.step()
        if isinstance(training.optimizer, MTAdam):
            training.optimizer.running_norms()
    assert all(torch.equal(p, q) for p, q in zip(training.params, expected.params, strict=True))


@pytest.mark.parametrize("name", ["MTAdam", "BalancedAdam"])
def test_stages_one_by_one_are_the_step(name: str, backend: str) -> None:
    check_stages(backend, name=name)


def test_norms_can_be_replaced_before_they_are_balanced(backend: str) -> None:
    check_other_norms(backend)


def test_auto_takes_the_kernels() -> None:
    assert statuses()["cpu"].usable
    assert select_backend("auto", torch.device("cpu")).name == "cpu"
    optimizer = MTAdam([nn.Parameter(torch.ones(2))])
    assert repr(optimizer).endswith("backend='auto' (cpu: cpu)")


class ModuleThatRefuses:
    """A stand-in for the native module, on a machine whose devices do not all run its kernels."""

    CUDA_ARCHITECTURES = "sm_90"
    cuda_run = None

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def cuda_find_problem(self, index: int) -> str:
        return self.problems[index]


def pretend_to_have_gpus(monkeypatch: pytest.MonkeyPatch, problems: list[str]) -> None:
    monkeypatch.setattr(native, "module", ModuleThatRefuses(problems))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(problems))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())


def test_a_device_that_refuses_the_kernels_gets_others(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_have_gpus(monkeypatch, ["the driver is too old", ""])
    for name in ("cuda", "cuda:0"):
        with pytest.warns(UserWarning, match="they do not run on cuda:0: the driver is too old"):
            assert select_backend("auto", torch.device(name)).name == "reference"
        with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot be used: .* on cuda:0: the driver is too old"):
            select_backend("cuda", torch.device(name))
    assert select_backend("auto", torch.device("cuda:1")).name == "cuda"
    expected = "kernels compiled for sm_90; they do not run on cuda:0: the driver is too old"
    assert STATUS["cuda"](None) == (True, expected)
    pretend_to_have_gpus(monkeypatch, ["the driver is too old"])
    assert STATUS["cuda"](None) == (False, expected)


def test_an_explicit_request_that_cannot_be_met_raises() -> None:
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot be used: it has no kernels for parameters on meta"):
        MTAdam([nn.Parameter(torch.ones(2, device="meta"))], backend="cpu")


def test_backends_go_by_their_names() -> None:
    assert [backend.name for backend in BACKENDS.values()] == list(BACKENDS)


class CountingBackend(ReferenceBackend):
    """A backend of a user's own."""

    name = "counting"

    def __init__(self, device: str = "cpu") -> None:
        self.steps, self._device = 0, device

    def supports(self, device: torch.device) -> bool:
        return device.type == self._device

    def mtadam_step(self, args: StepArgs) -> None:
        self.steps += 1
        super().mtadam_step(args)


def test_a_backend_object_makes_the_steps() -> None:
    backend = CountingBackend()
    training = start_training("MTAdam", "cpu", backend)
    training.step()
    assert backend.steps == 2
    assert repr(training.optimizer).endswith("(cpu: counting)")
    expected = start_training("MTAdam", "cpu", "reference")
    expected.step()
    assert all(torch.equal(p, q) for p, q in zip(training.params, expected.params, strict=True))


def test_a_backend_object_for_other_devices_is_refused() -> None:
    with pytest.raises(RuntimeError, match="backend 'counting' has no kernels for parameters on cpu"):
        MTAdam([nn.Parameter(torch.ones(2))], backend=CountingBackend("cuda"))


def test_what_is_no_backend_is_refused() -> None:
    with pytest.raises(TypeError, match="backend is 3; it must be a name"):
        MTAdam([nn.Parameter(torch.ones(2))], backend=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", [CudaBackend(), TritonBackend()])
def test_copies_of_an_optimizer_share_its_backend_object(backend: Backend) -> None:
    assert copy.deepcopy(backend) is backend


def test_without_the_native_module_auto_says_that_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "problem", ModuleNotFoundError("No module named 'mtadam_fused._C'"))
    with pytest.warns(UserWarning, match="slow pure-PyTorch reference on cpu: the native module was not built"):
        optimizer = MTAdam([nn.Parameter(torch.ones(2))])
    assert repr(optimizer).endswith("backend='auto' (cpu: reference)")
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot be used: .* install a C\+\+ compiler"):
        MTAdam([nn.Parameter(torch.ones(2))], backend="cpu")


def test_report() -> None:
    run = subprocess.run([sys.executable, "-m", "mtadam_fused"], capture_output=True, text=True, check=True)
    for word in (
        torch.__version__,
        "cpu              usable",
        "reference        usable",
        "triton   ",
        "on cpu: backend cpu",
        "threads, compiled by",
    ):
        assert word in run.stdout


ROOMS = ("distributed", "tables", "gradients", "backends", "rules", "weighting")


def test_layers_import_downwards_only() -> None:
    """Kernels know no Python, `reference` imports only torch, nothing imports upward."""
    package = Path(sys.modules["mtadam_fused"].__file__ or "").parent
    order = ["warn", "reference", "hyperparameters", *ROOMS]
    order += ["anchor_watch", "misuse_watch", "telemetry", "plots"]
    order += ["optimizer", "combined_adam", "mtadam", "balanced_adam", "recorder"]
    order += ["integrations", "__init__", "__main__"]
    modules = [path.relative_to(package) for path in package.rglob("*.py")]
    assert {path.parts[0].removesuffix(".py") for path in modules} == set(order)
    for path in modules:
        own = path.parts[0].removesuffix(".py")
        for line in (package / path).read_text().splitlines():
            words = line.split()
            if len(words) > 3 and words[0] == "from" and words[2] == "import" and words[1].startswith("."):
                inside_package = own in (*ROOMS, "integrations") and not words[1].startswith("..")
                target = words[1].strip(".").split(".")[0] or words[3]
                if not inside_package and target in order:
                    assert order.index(target) < order.index(own), f"{path}: {line}"
    assert "from ." not in (package / "reference.py").read_text()


def test_triton_kernels_import_nothing_of_the_package() -> None:
    folder = Path(__file__).parents[2] / "triton_kernels"
    own = [f".{path.stem}" for path in folder.glob("*.py")]
    allowed = ["triton", "triton.language", "inspect", "collections.abc", "typing", *own]
    for path in folder.glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                assert line.split()[1] in allowed, f"{path}: {line}"
