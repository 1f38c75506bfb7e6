"""Reading saved optimizer state: our own, and that of the published MTAdam."""

import math
from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..distributed.dtensor import describe_placement, same_placements, to_local
from ..hyperparameters import Hyperparameters, Term
from ..reference import arithmetic_type
from .layout import State, StateLayout, moments

OLD_NAMES = {"norms": "norm_avg"}  # of state in checkpoints from before 0.1.0


def asks_for_state(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a first step, of ``groups``, is torch.distributed.checkpoint's way to ask for all state.

    It gives every parameter a gradient of zeros in ``p.grad``, and every group a learning rate of 0.
    """
    params = [p for group in groups for p in group["params"]]
    if any(group["lr"] != 0 for group in groups):
        return False
    return not any(p.requires_grad if p.grad is None else to_local(p.grad).any() for p in params)


def read_state_dict(
    state_dict: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    defaults: Mapping[str, Any],
    *,
    hyperparameters: type[Hyperparameters],
    layout: StateLayout,
    fixed_terms: tuple[Term, ...] | None,
) -> tuple[list[dict[str, Any]], MutableMapping[Any, State]]:
    """Return parameter groups and state as ``state_dict`` has them, in new tensors, for the parameters of ``groups``.

    Args:
        state_dict: of torch's form. Groups lack hyper-parameters that are newer than they are.
        groups: of the optimizer.
        defaults: for what the saved groups lack.
        hyperparameters: which the groups must have.
        layout: of the optimizer's state.
        fixed_terms: the terms that the optimizer was made with, or None.

    Raises:
        ValueError: state of another model or optimizer, or hyper-parameters out of their range.
    """
    read_groups = match_groups(groups, state_dict["param_groups"])
    positions = (i for group in state_dict["param_groups"] for i in group["params"])
    params = dict(zip(positions, (p for group in groups for p in group["params"]), strict=True))
    saved = {i: rename_old(state) for i, state in state_dict["state"].items() if i in params}
    terms = saved_terms(read_groups[0].get("terms"), saved, fixed_terms)
    for i, state in saved.items():
        check_saved(state, params[i], i, len(terms), layout)
    for group in read_groups:  # after the state, which shows more clearly that it is another optimizer's
        for name in hyperparameters.names():
            group.setdefault(name, defaults[name])
        check_group(group, hyperparameters)
        group["terms"] = terms
    others = {key: value for key, value in state_dict["state"].items() if key not in params}
    restored = {params[i]: restore(state, params[i], len(terms), layout) for i, state in saved.items()}
    return read_groups, defaultdict(dict, {**others, **restored})


def check_group(group: Mapping[str, Any], hyperparameters: type[Hyperparameters]) -> None:
    """Raise ValueError for a saved parameter group that lacks hyper-parameters, or has bad ones."""
    try:
        hyperparameters.from_group(group)
    except ValueError as error:
        raise ValueError(
            f"the saved parameter group does not fit: {error}. It may be that of another optimizer: CombinedAdam loads "
            "the state of torch.optim.Adam, MTAdam that of the published MTAdam"
        ) from error


def saved_terms(
    names: Sequence[Term] | None, saved: Mapping[Any, Mapping[str, Any]], fixed_terms: tuple[Term, ...] | None
) -> tuple[Term, ...]:
    """Return the terms of an optimizer that loads a checkpoint.

    Args:
        names: the terms that the checkpoint names; None where it names none.
        saved: the states of all parameters.
        fixed_terms: the terms that the optimizer was made with, or None.

    Raises:
        ValueError: these are not the first of the fixed terms.
    """
    terms = tuple(range(count_terms(saved)) if names is None else names)
    if fixed_terms is None:
        return terms
    if len(terms) > len(fixed_terms) or (names is not None and terms != fixed_terms[: len(terms)]):
        raise ValueError(
            f"the saved terms are {list(terms)}, and the optimizer was made with terms={list(fixed_terms)}; make it "
            "with the saved ones first, in their order"
        )
    return fixed_terms


def match_groups(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return copies of the ``saved`` parameter groups with the parameters of ``groups``.

    Raises:
        ValueError: other numbers of groups, or of parameters in a group.
    """
    sizes, saved_sizes = ([len(group["params"]) for group in of] for of in (groups, saved))
    if len(sizes) != len(saved_sizes):
        raise ValueError(
            f"loaded state dict has a different number of parameter groups: {len(saved_sizes)}, the optimizer has "
            f"{len(sizes)}; load the state of the same model"
        )
    if sizes != saved_sizes:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: it has "
            f"{saved_sizes} parameters, the optimizer {sizes}; load the state of the same model"
        )
    matched = []
    for group, of_saved in zip(groups, saved, strict=True):
        copied = deepcopy({name: value for name, value in of_saved.items() if name != "params"})
        if "param_names" in group:
            copied.setdefault("param_names", group["param_names"])
        matched.append({**copied, "params": group["params"]})
    return matched


def rename_old(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's saved state under today's names."""
    return {OLD_NAMES.get(name, name): value for name, value in saved.items()}


def count_terms(saved: Mapping[Any, Mapping[str, Any]]) -> int:
    """Return the number of terms that the saved states of all parameters hold moments or running norms for."""
    by_moments = (1 + term for state in saved.values() for _, term in moments(state).values())
    by_norms = (norms.numel() for state in saved.values() if isinstance(norms := state.get("norm_avg"), Tensor))
    return max(chain(by_moments, by_norms), default=0)


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
    norm_avg = saved.get("norm_avg", torch.empty(0, device="cpu"))
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
    from 0. It does not save its running norms, which start anew. What users have added to the state is copied.

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
    kinds = moments(saved)
    state: State = {
        name: value.to(param.device, copy=True) if isinstance(value, Tensor) else deepcopy(value)
        for name, value in saved.items()
        if name not in (*kinds, "step", "norm_avg")
    }
    state["step"] = step - 1 if published else step
    if layout.has_norms:
        norm_avg = state["norm_avg"] = torch.full((terms,), math.nan, dtype=dtype, device=param.device)
        if "norm_avg" in saved:
            norm_avg[: len(saved["norm_avg"])] = saved["norm_avg"]
    for name, (kind, _) in kinds.items():
        value = saved[name]
        if kind == "exp_avg" and published:
            state["exp_avg"] = state.get("exp_avg", 0) + value.to(param.device, dtype)
        else:
            state[name] = value.to(param.device, dtype, copy=True)
    return state
