"""Reading saved optimizer state: our own, and that of the published MTAdam."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference import arithmetic_type
from .shards import are_spread_alike
from .shards import described as how_spread
from .table import State, moments


@dataclass(frozen=True)
class Saved:
    """A parameter's saved state in a wrapper that ``Optimizer.load_state_dict`` passes on as it is.

    It would cast what it can look into to the type of the parameter, and fp32 moments of 16-bit parameters would lose
    digits.
    """

    state: Mapping[str, Any]


def count_terms(saved: Mapping[Any, Mapping[str, Any]]) -> int:
    """The number of terms that the saved states of all parameters hold moments for."""
    return 1 + max((term for state in saved.values() for _, term in moments(state).values()), default=-1)


def check_saved(saved: Mapping[str, Any], param: Tensor, position: int, terms: int, per_term: bool) -> None:
    """Raises ValueError unless ``saved`` can be the state of ``param``, with second moments ``per_term`` or not."""
    kinds = moments(saved)
    for name, (kind, term) in kinds.items():
        value = saved[name]
        if not isinstance(value, Tensor) or value.shape != param.shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else value
            raise ValueError(
                f"the saved {name} of parameter {position} is {shape}, the parameter has shape {tuple(param.shape)}; "
                "load the state of the same model"
            )
        if not are_spread_alike(value, param):
            raise ValueError(
                f"the saved {name} of parameter {position} is {how_spread(value)}, the parameter {how_spread(param)}; "
                "load it with torch.distributed.checkpoint, which spreads it as the parameter is"
            )
        if kind != "exp_avg" and (term >= 0) != per_term:
            raise ValueError(
                f"the saved state of parameter {position} has {name}, of an optimizer with a second moment "
                f"{'for all terms' if per_term else 'per term'}; load the state of the same optimizer"
            )
        if value.is_complex() or term >= terms:
            raise ValueError(
                f"the saved {name} of parameter {position} is {value.dtype}, and there are {terms} terms; it must be "
                "real, and of one of these"
            )
    if saved and "step" not in saved:
        raise ValueError(f"the saved state of parameter {position} has no 'step' ({list(saved)}); it is not Adam's")
    if saved and "exp_avg" not in {kind for kind, _ in kinds.values()}:
        raise ValueError(f"the saved state of parameter {position} has no 'exp_avg' ({list(saved)}); it is not whole")
    step = saved.get("step", 0)
    if not (isinstance(step, (int, float)) or (isinstance(step, Tensor) and step.numel() == 1)):
        raise ValueError(f"the saved step of parameter {position} is {step!r}; it must be a number")
    norms = saved.get("norms", torch.empty(0))
    if per_term and not (isinstance(norms, Tensor) and norms.dim() == 1 and len(norms) <= terms):
        raise ValueError(
            f"the saved norms of parameter {position} are {norms!r}; they must be a tensor with one for each of the "
            f"{terms} terms"
        )
    for term in norms.isfinite().nonzero().flatten().tolist() if per_term else ():
        if f"exp_avg_sq{term}" not in saved:
            raise ValueError(
                f"the saved state of parameter {position} has a running norm of term {term} but no exp_avg_sq{term}; "
                "it is not whole: the step before torch.distributed.checkpoint loads must reach what was reached then"
            )


def restore(saved: Mapping[str, Any], param: Tensor, terms: int, per_term: bool) -> State:
    """The state of ``param`` out of what was saved, in tensors of its own; the next table gives them its layout.

    The published optimizer keeps one first moment per term, of which only the sum is used; counts steps from 1, not
    from 0; and does not save its running norms, which start anew.
    """
    if not saved:
        return {}
    dtype = arithmetic_type(param.dtype)
    published = "exp_avg0" in saved
    step = torch.as_tensor(saved["step"], dtype=torch.float32, device=param.device).reshape(()).clone()
    state: State = {"step": step - 1 if published else step}
    if per_term:
        norms = state["norms"] = torch.full((terms,), math.nan, dtype=dtype, device=param.device)
        if "norms" in saved:
            norms[: len(saved["norms"])] = saved["norms"]
    for name, (kind, _) in moments(saved).items():
        value = saved[name]
        if kind == "exp_avg" and published:
            state["exp_avg"] = state.get("exp_avg", 0) + value.to(param.device, dtype)
        else:
            state[name] = value.to(param.device, dtype, copy=True)
    return state
