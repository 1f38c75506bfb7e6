"""Tests of the Triton backend alone; its arithmetic is tested with that of the others."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.backends import registry, select_backend, statuses
from mtadam_fused.backends import triton as backend
from mtadam_fused.rules import PCGrad
from tests.support.triton_interpreter import INTERPRETED

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton, and no GPU")


@pytest.fixture
def fresh_load() -> Iterator[None]:
    """Lets a test change what Triton there is."""
    backend.load.cache_clear()
    yield
    backend.load.cache_clear()


class CountedLaunches:
    """Stand in for the module of the kernels: count the launches of each, and run none."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.count: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._kernels, name)
        return Launcher(name, self.count) if hasattr(value, "fn") else value


@dataclass
class Launcher:
    """Return one kernel of those."""

    name: str
    count: Counter[str]

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        self.count[self.name] += 1
        return lambda *_, **__: None


def run_steps(params: list[nn.Parameter], steps: int = 2) -> list[Tensor]:
    """Return the parameters after some steps of two terms; which pairs are absent depends on a parameter's size."""
    optimizer = MTAdam(params, lr=0.1, keep_combined_grad=True, backend="triton")
    for t in range(steps):
        for k in range(2):
            with optimizer.term(k):
                for p in params:
                    if (p.numel() + k + t) % 3:
                        p.grad = (torch.arange(p.numel()) % 7 - k - t).to(p.dtype)
        optimizer.step()
    return [p.detach() for p in params] + [p.grad for p in params if p.grad is not None]


@interpreted
def test_types_in_one_table_are_as_each_alone() -> None:
    def params(*dtypes: torch.dtype) -> list[nn.Parameter]:
        return [nn.Parameter(torch.arange(n).to(dtype)) for dtype in dtypes for n in (5, 0, 33, 8200)]

    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    together = run_steps(params(*dtypes))
    alone = [run_steps(params(dtype)) for dtype in dtypes]
    assert len(together) == sum(map(len, alone))
    for dtype, expected in zip(dtypes, alone, strict=True):
        for p, q in zip([p for p in together if p.dtype == dtype], expected, strict=True):
            assert torch.equal(p, q)


@interpreted
@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("terms", [1, 20])
def test_launches_do_not_grow_with_tensors_and_terms(count: int, terms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = CountedLaunches(backend.load()[0])
    monkeypatch.setattr(backend, "load", lambda: (kernels, ""))
    params = [nn.Parameter(torch.zeros(3, dtype=d)) for _ in range(count) for d in (torch.float32, torch.float16)]
    for optimizer in (MTAdam(params, backend="triton"), CombinedAdam(params, PCGrad(), backend="triton")):
        optimizer.backward([sum((p.float().sum() for p in params), torch.zeros(())) for _ in range(terms)])
        optimizer.step()
    assert kernels.count == {
        **{"term_norms": 2, "balance": 1, "mtadam_update": 2},
        **{"term_gram": 2, "fold_gram": 1, "begin_step": 1, "combined_adam": 2},
    }


@interpreted
def test_the_interpreter_runs_only_when_asked_for() -> None:
    assert "interpreter" in statuses()["triton"].reason
    assert select_backend("triton", CPU).name == "triton"
    assert "triton" not in registry.AUTO
    with pytest.raises(RuntimeError, match="'triton' cannot be used: it has no kernels for parameters on cuda:0"):
        select_backend("triton", GPU)


def pretend_to_have_a_gpu(monkeypatch: pytest.MonkeyPatch, cuda: bool, triton: bool) -> None:
    """Make "auto" see a machine with a GPU whose backends are usable or not."""
    monkeypatch.setattr(backend, "DEVICE_TYPES", ("cuda", "xpu"))
    monkeypatch.setattr(registry, "AUTO", ("cuda", "triton", "cpu", "reference"))
    found = {"cuda": lambda device: (cuda, "no nvcc"), "triton": lambda device: (triton, "no Triton")}
    monkeypatch.setattr(registry, "STATUS", {**registry.STATUS, **found})


def test_auto_takes_cuda_then_triton_then_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_to_have_a_gpu(monkeypatch, cuda=True, triton=True)
    assert select_backend("auto", GPU).name == "cuda"
    pretend_to_have_a_gpu(monkeypatch, cuda=False, triton=True)
    assert select_backend("auto", GPU).name == "triton"
    assert select_backend("auto", torch.device("xpu", 0)).name == "triton"
    pretend_to_have_a_gpu(monkeypatch, cuda=False, triton=False)
    with pytest.warns(UserWarning, match="slow pure-PyTorch reference on cuda:0: no nvcc; no Triton"):
        assert select_backend("auto", GPU).name == "reference"
    with pytest.raises(RuntimeError, match="backend 'triton' cannot be used: no Triton"):
        select_backend("triton", GPU)


@pytest.mark.usefixtures("fresh_load")
def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert backend.status() == (False, "Triton is missing: install triton 3.3 or newer")


@interpreted
@pytest.mark.usefixtures("fresh_load")
def test_an_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.__version__", "3.1.0+git")
    assert backend.status() == (False, "Triton 3.1.0+git is too old: install triton 3.3 or newer")


def test_a_gpu_needs_a_c_compiler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", "3.3")
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(backend, "DEVICE_TYPES", ("cuda", "xpu"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert "torch sees no GPU" in backend.status()[1]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: GPU)
    assert backend.status()[0]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    usable, reason = backend.status()
    assert not usable
    assert "install gcc" in reason


@pytest.mark.usefixtures("fresh_load")
def test_kernels_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", "3.3")
    monkeypatch.setitem(sys.modules, "mtadam_fused.triton_kernels", None)
    usable, reason = backend.status()
    assert not usable
    assert "reinstall mtadam_fused" in reason
