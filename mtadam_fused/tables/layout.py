"""Names and memory layouts of gradients and state."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ..distributed.dtensor import dtensor_like, is_dtensor, to_local
from ..reference import arithmetic_type

State = dict[str, Any]  # of one parameter
TermGradients = list[list[Tensor | None]]  # [K][parameters], None where a term does not reach the parameter


@dataclass(frozen=True)
class StateLayout:
    """What an optimizer keeps for each parameter, beside its step count and its first moment."""

    has_norms: bool  # running norms of the terms
    per_term: bool  # a second moment for each term, or one for all

    def exp_avg_sq_names(self, terms: Iterable[int]) -> list[str]:
        """Return the names of the second moments of ``terms``: one each, or one for all."""
        return [f"exp_avg_sq{k}" for k in terms] if self.per_term else ["exp_avg_sq"]


_MOMENT = re.compile(r"(max_exp_avg_sq|exp_avg_sq|exp_avg)(\d*)")


def dense_like(like: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``value`` in the strides of ``like``, made dense where ``like`` has gaps. Copy only if necessary."""
    if is_dtensor(like):
        local = to_local(value)
        dense = dense_like(to_local(like), local, dtype)
        return value if dense is local else dtensor_like(like, dense)
    layout = torch.empty_like(like, dtype=dtype, device="meta")
    same_place = value.device == like.device and value.stride() == layout.stride()
    if value.dtype == dtype and same_place and not value.is_neg():  # the negative bit: memory holds the negated values
        return value
    return torch.empty_like(like, dtype=dtype, requires_grad=False).copy_(value)


def device_of(params: Sequence[Tensor]) -> torch.device:
    """Return the device of the first parameter; the CPU if there is none."""
    return params[0].device if params else torch.device("cpu")


def memory_of(params: Sequence[Tensor]) -> tuple[list[Any], ...]:
    """Return what tells whether parameters still have the memory that they had."""
    return tuple(list(map(of_one, params)) for of_one in (Tensor.data_ptr, Tensor.numel, attrgetter("dtype")))


def fit_gradients(grads: TermGradients, params: Sequence[Tensor]) -> None:
    """Give waiting gradients the strides of parameters whose layout has changed since; replaces entries of ``grads``.

    Raises:
        RuntimeError: a parameter has another shape, device or dtype than before; nothing has changed.
    """
    for row in grads:
        for i, (grad, p) in enumerate(zip(row, params, strict=True)):
            if grad is None:
                continue
            fits = grad.shape == p.shape and grad.device == p.device
            if not fits or grad.dtype not in (p.dtype, arithmetic_type(p.dtype)):
                raise RuntimeError(
                    f"parameter {i} has become {describe(p)} since its gradient was taken, which is {describe(grad)}; "
                    "call zero_grad(), then backward() again"
                )
            row[i] = dense_like(p, grad, grad.dtype)


def describe(tensor: Tensor) -> str:
    """Return dtype, shape and device, for error messages."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one shape are plainly dense with their elements in the same order in memory."""
    if a.is_contiguous() and b.is_contiguous():
        return True
    channels_last = torch.channels_last
    return (
        a.dim() == 4 and a.is_contiguous(memory_format=channels_last) and b.is_contiguous(memory_format=channels_last)
    )


def moments(state: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return the names of the moments in a state, each split into kind and term number (-1 where it has none)."""
    found = ((name, _MOMENT.fullmatch(name)) for name in state)
    return {name: (match[1], int(match[2] or -1)) for name, match in found if match}


def grow_state(state: State, param: Tensor, terms: Sequence[int], amsgrad: bool, layout: StateLayout) -> None:
    """Add the state that ``param`` lacks for ``terms``, filled with zeros, and give all state its strides."""
    dtype = arithmetic_type(param.dtype)

    def zeros() -> Tensor:
        return torch.zeros_like(param, dtype=dtype, requires_grad=False)

    grown: State = {"step": torch.zeros((), dtype=torch.float32, device=param.device)}
    if layout.has_norms:
        grown["norm_avg"] = torch.empty(0, dtype=dtype, device=param.device)
    grown |= state
    for name in ("exp_avg", *layout.exp_avg_sq_names(terms)):
        if name not in grown:
            grown[name] = zeros()
    for name in moments(grown):
        grown[name] = dense_like(param, grown[name], dtype)
    if amsgrad:
        for name in [name for name in moments(grown) if name.startswith("exp_avg_sq")]:
            if f"max_{name}" not in grown:
                grown[f"max_{name}"] = zeros()
    state.update(grown)  # at once, so that an interrupt leaves no part of it
