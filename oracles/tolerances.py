"""The tolerances, in one place. test_properties.py proves that each rejects deliberately broken updates."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

F64_ABSOLUTE = 1e-12  # per parameter of size 1
F32_TRACE = (1e-5, 5e-7)  # relative and absolute, of parameters of size 1 after some steps of 1e-3
F32_OF_UPDATE = 1e-5  # of the element's update, on top of one unit in the last place of the parameter,
F32_OF_UPDATES = 1e-6  # and of the root mean square of all updates: where momentum cancels, rounding does not
ROUNDINGS = 4  # of the gradients, each a unit in the last place: where they cancel, or do with L2 decay
UPDATE = 3e-3  # of the update's norm, where the gradients were computed anew in float32
F16_DIFFERING = 0.003  # of the elements: float32 arithmetic may fall on the other side of a rounding tie


class TooFar(AssertionError):
    """Two results that should agree do not."""


def same(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    """Return whether two sequences of as many tensors are equal to the bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_params(actual: Tensor, expected: np.ndarray, before: Tensor, nudged: np.ndarray | None = None) -> None:
    """Compare a parameter after a step with the float64 result of the same step from the same stored value.

    Args:
        actual: the parameter, of any supported type.
        expected: the float64 oracle's result.
        before: the parameter before the step.
        nudged: the oracle's result from scaled gradients a rounding away, of the type of the arithmetic.

    Raises:
        TooFar: they differ by more than the type's tolerance.
    """
    want = torch.from_numpy(np.asarray(expected, dtype=np.float64)).reshape(actual.shape)
    got = actual.detach()
    if not bool(got.isfinite().all()):
        raise TooFar("the parameter is not finite")
    roundings = torch.zeros_like(want)
    if nudged is not None:
        roundings = ROUNDINGS * (torch.from_numpy(np.asarray(nudged)).reshape(actual.shape) - want).abs()
    if got.dtype == torch.float64:
        excess = (got - want).abs() - F64_ABSOLUTE * want.abs().clamp(min=1.0) - roundings
    elif got.dtype == torch.float32:
        away = torch.nextafter(got.abs(), torch.tensor(torch.inf)).double()
        ulp = away - got.abs().double()
        update = (want - before.double()).abs()
        slack = F32_OF_UPDATE * update + F32_OF_UPDATES * update.square().mean().sqrt()
        excess = (got.double() - want).abs() - ulp - slack - roundings
    else:
        differing = (got != want.to(got.dtype)).double().mean().item() if got.numel() else 0.0
        allowed = max(F16_DIFFERING, 1.5 / max(got.numel(), 1))
        if differing > allowed:
            raise TooFar(f"{100 * differing:.2f} % of the elements differ; {100 * allowed:.2f} % may")
        return
    if got.numel() and excess.max() > 0:
        raise TooFar(f"differs by {(got.double() - want).abs().max():.3e}, {excess.max():.3e} too much")


def check_update(actual: Tensor, expected: np.ndarray, before: Tensor) -> None:
    """Compare a parameter after a step whose gradients differ by rounding; arguments as of ``check_params``.

    Raises:
        TooFar: the updates' difference has a norm of more than UPDATE of the update's, and a rounding of the parameter.
    """
    want = torch.from_numpy(np.asarray(expected, dtype=np.float64)).reshape(actual.shape)
    difference, update = (actual.detach().double() - want).norm(), (want - before.double()).norm()
    if not difference <= UPDATE * update + torch.finfo(actual.dtype).eps * want.norm():
        raise TooFar(f"the update differs by {difference:.3e} of {update:.3e}")


def check_values(actual: Tensor, expected: np.ndarray, relative: float, absolute: float = 1e-300) -> None:
    """Compare norms, scales or moments, element by element, NaN equal to NaN.

    Raises:
        TooFar: they differ by more than ``relative`` of the expected value plus ``absolute``.
    """
    got = actual.detach().double().cpu().numpy()
    if got.shape != np.shape(expected) or not np.allclose(got, expected, rtol=relative, atol=absolute, equal_nan=True):
        raise TooFar(f"{got} is not {expected}")
