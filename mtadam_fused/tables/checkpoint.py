"""Reading saved optimizer state: our own, and that of the published MTAdam."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distributed.dtensor import describe_placement, same_placements
from ..reference import arithmetic_type
from .layout import State, StateLayout, moments

OLD_NAMES = {"norms": "norm_avg"}  # of state in checkpoints from before 0.1.0


@dataclass(frozen=True)
class OpaqueState:
    """A parameter's saved state, hidden from ``Optimizer.load_state_dict``.

    That would cast the tensors it finds to the dtype of the parameter, and the float32 moments of a 16-bit parameter
    would lose digits.
    """

    state: Mapping[str, Any]


def rename_old(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's saved state under today's names."""
    return {OLD_NAMES.get(name, name): value for name, value in saved.items()}


def count_terms(saved: Mapping[Any, Mapping[str, Any]]) -> int:
    """Return the number of terms that the saved states of all parameters hold moments for."""
    return 1 + max((term for state in saved.values() for _, term in moments(state).values()), default=-1)


def check_saved(saved: Mapping[str, Any], param: Tensor, position: int, terms: int, layout: StateLayout) -> None:
    """Raise ValueError unless ``saved`` can be the state of ``param``.

    Args:
        saved: under today's names.
        position: of the parameter, for error messages.
        terms: their number.
        layout: of the optimizer's state.
    """
    kinds = moments(saved)
    for name, (kind, term) in kinds.items():
        check_moment(saved[name], name, kind, term, param, position, terms, layout)
    if saved and "step" not in saved:
        raise ValueError(f"the saved state of parameter {position} has no 'step' ({list(saved)}); it is not Adam's")
    if saved and "exp_avg" not in {kind for kind, _ in kinds.values()}:
        raise ValueError(f"the saved state of parameter {position} has no 'exp_avg' ({list(saved)}); it is incomplete")
    step = saved.get("step", 0)
    if not (isinstance(step, (int, float)) or (isinstance(step, Tensor) and step.numel() == 1)):
        raise ValueError(f"the saved step of parameter {position} is {step!r}; it must be a number")
    if layout.has_norms:
        check_norm_avg(saved, position, terms, layout)


def check_moment(
    value: Any, name: str, kind: str, term: int, param: Tensor, position: int, terms: int, layout: StateLayout
) -> None:
    """Raise ValueError unless ``value`` can be the moment ``name`` of ``param``; see :func:`check_saved`."""
    if not isinstance(value, Tensor) or value.shape != param.shape:
        shape = tuple(value.shape) if isinstance(value, Tensor) else value
        raise ValueError(
            f"the saved {name} of parameter {position} is {shape}, the parameter has shape {tuple(param.shape)}; "
            "load the state of the same model"
        )
    if not same_placements(value, param):
        raise ValueError(
            f"the saved {name} of parameter {position} is {describe_placement(value)}, the parameter is "
            f"{describe_placement(param)}; load it with torch.distributed.checkpoint, which shards it alike"
        )
    if kind != "exp_avg" and (term >= 0) != layout.per_term:
        raise ValueError(
            f"the saved state of parameter {position} has {name}, of an optimizer with a second moment "
            f"{'for all terms' if layout.per_term else 'per term'}; load the state of the same optimizer, "
            "made with the same second_moments"
        )
    if value.is_complex() or term >= terms:
        raise ValueError(
            f"the saved {name} of parameter {position} is {value.dtype}, and there are {terms} terms; it must be "
            "real, and of one of these"
        )


def check_norm_avg(saved: Mapping[str, Any], position: int, terms: int, layout: StateLayout) -> None:
    """Raise ValueError unless the saved running norms fit the terms and the second moments beside them."""
    norm_avg = saved.get("norm_avg", torch.empty(0))
    if not (isinstance(norm_avg, Tensor) and norm_avg.dim() == 1 and len(norm_avg) <= terms):
        raise ValueError(
            f"the saved norm_avg of parameter {position} is {norm_avg!r}; it must be a tensor with one running norm "
            f"for each of the {terms} terms"
        )
    for term in norm_avg.isfinite().nonzero().flatten().tolist():
        (name,) = layout.exp_avg_sq_names([term])
        if name not in saved:
            raise ValueError(
                f"the saved state of parameter {position} has a running norm of term {term} but no {name}; "
                "it is incomplete: before torch.distributed.checkpoint loads, run one step in which every term "
                "reaches the same parameters as before"
            )


def restore(saved: Mapping[str, Any], param: Tensor, terms: int, layout: StateLayout) -> State:
    """Return the state of ``param`` from a checkpoint, in new tensors; the next table gives them its strides.

    The published optimizer keeps one first moment per term, of which only the sum is used. It counts steps from 1, not
    from 0. It does not save its running norms, which start anew.

    Args:
        saved: under today's names.
        terms: their number.
        layout: of the optimizer's state.
    """
    if not saved:
        return {}
    dtype = arithmetic_type(param.dtype)
    published = "exp_avg0" in saved
    step = torch.as_tensor(saved["step"], dtype=torch.float32, device=param.device).reshape(()).clone()
    state: State = {"step": step - 1 if published else step}
    if layout.has_norms:
        norm_avg = state["norm_avg"] = torch.full((terms,), math.nan, dtype=dtype, device=param.device)
        if "norm_avg" in saved:
            norm_avg[: len(saved["norm_avg"])] = saved["norm_avg"]
    for name, (kind, _) in moments(saved).items():
        value = saved[name]
        if kind == "exp_avg" and published:
            state["exp_avg"] = state.get("exp_avg", 0) + value.to(param.device, dtype)
        else:
            state[name] = value.to(param.device, dtype, copy=True)
    return state
