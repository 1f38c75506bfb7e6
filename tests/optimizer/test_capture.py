"""Host memory that a CUDA graph of a captured step keeps reading, tested without a GPU."""

import weakref
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtadam_fused.backends import CudaBackend, device, native
from mtadam_fused.backends.device import CAPTURES, DeviceBuffers, Staging
from mtadam_fused.tables.step_args import GROUP_FIELDS
from tests.support.cuda_emulator import EmulatedCuda
from tests.support.small_problem import start_training

CUDA = torch.device("cuda")


class Capture:
    """The capture that the backends see, on or off."""

    on = False


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    capture = Capture()
    monkeypatch.setattr(device, "is_capturing", lambda _: capture.on)
    monkeypatch.setattr(device, "pinned", lambda count, like: list(like.new_empty((count, len(like)))))
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    return capture


def stage(staging: Staging, value: float) -> Tensor:
    return staging(array("d", [value]))


def test_each_value_captured_has_memory_of_its_own(capture: Capture) -> None:
    staging = Staging(array("d", [0.0]), CUDA)
    capture.on = True
    first, second, again = (stage(staging, value) for value in (1.0, 2.0, 1.0))
    capture.on = False
    outside = stage(staging, 3.0)
    assert [t.item() for t in (first, second, again, outside)] == [1.0, 2.0, 1.0, 3.0]
    assert first.data_ptr() == again.data_ptr()
    assert len({t.data_ptr() for t in (first, second, outside)}) == 3


def test_too_many_captures_in_a_row_are_refused(capture: Capture) -> None:
    staging = Staging(array("d", [0.0]), CUDA)
    for start in (0, 100):
        capture.on = True
        kept = [stage(staging, start + n) for n in range(CAPTURES)]
        with pytest.raises(RuntimeError, match="make one and capture again"):
            stage(staging, -1.0)
        capture.on = False
        staging.set_aside()
        assert [t.item() for t in kept] == [start + n for n in range(CAPTURES)]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return for each launch of CUDA kernels whether its hyper-parameters still had their memory."""
    held: list[weakref.ref[Tensor]] = []
    found: list[bool] = []
    hyperparameters = DeviceBuffers.hyperparameters

    def note(*arguments: Any) -> tuple[Tensor, Tensor]:
        made = hyperparameters(*arguments)
        held[:] = map(weakref.ref, made)
        return made

    module = SimpleNamespace(TERM_NORMS=1, BALANCE=2, MTADAM_UPDATE=4)
    module.cuda_run = lambda *_: found.append(all(tensor() is not None for tensor in held))
    monkeypatch.setattr(DeviceBuffers, "hyperparameters", note)
    monkeypatch.setattr(native, "module", module)
    return found


def test_hyperparameters_of_a_captured_step_are_held_until_the_launch(capture: Capture, launches: list[bool]) -> None:
    training = start_training("MTAdam", "cpu", EmulatedCuda(), dtype=torch.bfloat16)
    capture.on = True
    training.step()
    assert launches == [True, True]


def test_a_step_outside_of_captures_allows_for_more(capture: Capture, launches: list[bool]) -> None:
    training = start_training("MTAdam", "cpu", EmulatedCuda())
    (table,) = training.optimizer._table_cache._tables
    (backend,) = training.optimizer._backends.values()
    assert isinstance(backend, CudaBackend)
    backend._buffers[table]._staging = Staging(array("d", bytes(8 * (len(GROUP_FIELDS) + 3))), CUDA)
    for lr in range(3 * CAPTURES):
        if lr % CAPTURES == 0:  # with hyper-parameters that are on the device already
            capture.on = False
            training.optimizer.param_groups[0]["lr"] = 0.1
            training.step()
            capture.on = True
        training.optimizer.param_groups[0]["lr"] = 1.0 + lr
        training.step()
    assert all(launches)


def test_a_first_step_cannot_be_captured(capture: Capture, launches: list[bool]) -> None:
    capture.on = True
    with pytest.raises(RuntimeError, match="outside of the CUDA graph"):
        start_training("MTAdam", "cpu", EmulatedCuda())
    assert launches == []
