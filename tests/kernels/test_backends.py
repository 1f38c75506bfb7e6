"""Choosing a backend; each backend's stages apart; the same bits on every instruction set and number of threads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mtadam_fused import MTAdam
from mtadam_fused.backends import native, select_backend, statuses
from tests.support.small_problem import OPTIMIZERS, start_training
from tests.support.stages import check_other_norms, check_stages

# Prints a digest of parameters and state after some steps of awkward sizes and types.
DIGEST = """
import hashlib, sys, torch
from mtadam_fused import MTAdam
from mtadam_fused.backends import native
torch.set_num_threads(int(sys.argv[1]))
def values(n, seed):  # torch.randn is not the same on every instruction set
    return (torch.arange(n) * 7919 + seed * 104729) % 1009 / 256 - 2
digest = hashlib.sha256()
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    params = [torch.nn.Parameter(values(n, 0).to(dtype)) for n in (0, 1, 3, 4097, 200_001, 50_000)]
    optimizer = MTAdam(params, lr=0.1, amsgrad=True, weight_decay=0.1, backend="cpu")
    for t in range(3):
        for k in range(3):
            with optimizer.term(k):
                for p in params:
                    p.grad = values(p.numel(), 3 * t + k + 1).to(dtype) * 10**k
        optimizer.step()
    for p in params:
        for value in [p.detach(), *optimizer.state[p].values()]:
            digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
print(native.module.instruction_set(), native.module.threading(), digest.hexdigest())
"""


def digest(threads: int, **environment: str) -> tuple[str, str, str]:
    run = subprocess.run(
        [sys.executable, "-c", DIGEST, str(threads)], capture_output=True, text=True, check=True, env=environment
    )
    isa, threading, value = run.stdout.split()
    return isa, threading, value


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_default_device_does_not_matter(name: str, backend: str) -> None:
    expected, training = start_training(name, "cpu", backend), start_training(name, "cpu", backend)
    expected.step()
    with torch.device("meta"):  # where nothing can be read
        training.optimizer.load_state_dict(training.optimizer.state_dict())
        training.step()
        if isinstance(training.optimizer, MTAdam):
            training.optimizer.running_norms()
    assert all(torch.equal(p, q) for p, q in zip(training.params, expected.params, strict=True))


@pytest.mark.slow
def test_same_bits_whatever_the_machine() -> None:
    expected = digest(2)
    assert expected[1] == ("torch" if torch.__version__ >= "2.10" else "openmp")  # see csrc/cpu/parallel.cpp
    assert digest(1)[2] == expected[2]
    for capability in ("default", "avx2", "avx512"):
        isa, _, value = digest(2, ATEN_CPU_CAPABILITY=capability)
        assert value == expected[2], isa
    for threads in ("openmp", "serial"):
        _, threading, value = digest(2, MTADAM_FUSED_THREADS=threads)
        assert (threading, value) == (threads, expected[2])


def test_stages_one_by_one_are_the_step(backend: str) -> None:
    check_stages(backend)


def test_norms_can_be_replaced_before_they_are_balanced(backend: str) -> None:
    check_other_norms(backend)


def test_auto_takes_the_kernels() -> None:
    assert statuses()["cpu"].usable
    assert select_backend("auto", torch.device("cpu")).name == "cpu"
    optimizer = MTAdam([nn.Parameter(torch.ones(2))])
    assert repr(optimizer).endswith("backend='auto' (cpu: cpu)")


def test_an_explicit_request_that_cannot_be_met_raises() -> None:
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot be used: it has no kernels for parameters on meta"):
        MTAdam([nn.Parameter(torch.ones(2, device="meta"))], backend="cpu")


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
        'backend="auto" takes',
        "threads, compiled by",
    ):
        assert word in run.stdout


ROOMS = ("distributed", "tables", "gradients", "weighting", "backends", "rules")


def test_layers_import_downwards_only() -> None:
    """Kernels know no Python, `reference` imports only torch, nothing imports upward."""
    package = Path(sys.modules["mtadam_fused"].__file__ or "").parent
    order = ["hyperparameters", "reference", *ROOMS]
    order += ["optimizer", "combined_adam", "mtadam", "__init__", "__main__"]
    modules = [path.relative_to(package) for path in package.rglob("*.py")]
    assert {path.parts[0].removesuffix(".py") for path in modules} == set(order)
    for path in modules:
        own = path.parts[0].removesuffix(".py")
        for line in (package / path).read_text().splitlines():
            words = line.split()
            if len(words) > 3 and words[0] == "from" and words[2] == "import" and words[1].startswith("."):
                inside_package = own in ROOMS and not words[1].startswith("..")
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
