"""One step of one parameter in float64, and how far rounding may take an optimizer from it.

The step is that of ``oracles.numpy_oracle``. The bounds follow each rounding through the step, from stored values that
are taken as exact, so they hold for every input: also where gradients cancel, and the step of Adam is any number.
Factors of 4 and 8 stand for as many operations in a row, or fewer; everything is doubled in the end, for products of
errors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from oracles import numpy_oracle
from oracles.numpy_oracle import Array, Parameter

Values = dict[str, Any]  # of a parameter: "param", "step", "norm_avg{k}", and its moments by their names

ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
TINY_NORM = 1e-10


class Unsure(Exception):
    """Rounding may have decided on which side of a threshold a norm is."""


@dataclass
class Grad:
    """A gradient as float64, how far rounding may have moved it, and the type that it is held in."""

    value: Array
    slack: Array
    dtype: torch.dtype

    def plus(self, other: "Grad") -> "Grad":
        """Return the sum, in the type of ``self``."""
        total = self.value + other.value
        return Grad(total, self.slack + other.slack + 2 * ROUNDOFF[self.dtype] * np.abs(total), self.dtype)

    def times(self, factor: float, error: float) -> "Grad":
        """Return the product with a factor that has a relative error."""
        with np.errstate(all="ignore"):
            product = self.value * factor
            relative = error + 4 * ROUNDOFF[self.dtype]
            return Grad(product, abs(factor) * self.slack + relative * np.abs(product), self.dtype)


@dataclass
class Prediction:
    """What a step makes of a parameter, and how far from it a right answer may be."""

    values: Values
    slack: Values
    scales: dict[int, float] = field(default_factory=dict)
    scale_slack: float = 0.0  # relative
    combined: Array | None = None  # what is left in p.grad if asked for
    combined_slack: Array | None = None


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(values: Values, dtype: torch.dtype) -> Values:
    """Return ``values`` with the state in the type that belongs to a parameter of ``dtype``."""
    if dtype == torch.float64:
        return dict(values)
    with np.errstate(all="ignore"):
        return {
            name: value if name in ("param", "step") else np.asarray(np.float32(value), np.float64)[()]
            for name, value in values.items()
        }


def to_parameter(values: Values) -> Parameter:
    """Return the oracle's parameter. Its norms of the past are the running norm, which remembers no more."""
    steps = int(values.get("step", 0))
    x = Parameter(values["param"], t=steps, m=values.get("exp_avg", np.zeros_like(values["param"])))
    for name, value in values.items():
        for prefix, target in (("exp_avg_sq", x.v), ("max_exp_avg_sq", x.v_max)):
            if name.startswith(prefix):
                suffix = name.removeprefix(prefix)
                target[int(suffix) if suffix else ""] = value
        if name.startswith("norm_avg"):
            k = int(name.removeprefix("norm_avg"))
            x.norms[k], x.ema[k] = [value] * steps, value
    return x


def to_values(x: Parameter) -> Values:
    return {
        "param": x.value,
        "step": x.t,
        "exp_avg": x.m,
        **{f"exp_avg_sq{suffix}": v for suffix, v in x.v.items()},
        **{f"max_exp_avg_sq{suffix}": v for suffix, v in x.v_max.items()},
        **{f"norm_avg{k}": norm for k, norm in x.ema.items()},
    }


def advance(
    values: Values, grads: Mapping[int, Grad], dtype: torch.dtype, balance: bool, options: dict[str, Any]
) -> Prediction:
    """Return what a step with the gradients of some terms makes of a parameter.

    Args:
        values: before the step, as stored.
        grads: at least one.
        dtype: of the parameter.
        balance: whether the terms are balanced, as by MTAdam; else there is one gradient, which is not scaled.
        options: of ``numpy_oracle.step``.

    Raises:
        Unsure: a running norm is at the threshold of what counts as zero.
    """
    with np.errstate(all="ignore"):
        return _advance(cast(values, dtype), grads, dtype, balance, options)


def _advance(
    old: Values, grads: Mapping[int, Grad], dtype: torch.dtype, balance: bool, options: dict[str, Any]
) -> Prediction:
    u, p = ROUNDOFF[arithmetic(dtype)], old["param"]
    b1, b2 = options["betas"][:2]
    x = to_parameter(old)
    maxima = dict(x.v_max)
    numpy_oracle.step(x, {k: g.value for k, g in grads.items()}, **options)
    if not options["amsgrad"]:
        x.v_max = maxima  # what was kept stays, and does not bound the step
    slack: Values = {}
    rel = 0.0  # error of the scales
    if balance:
        slack = norm_slack(old, x, grads, u, options)
        rel = 2 * max((slack[f"norm_avg{k}"] / e for k, e in x.ema.items() if e > TINY_NORM), default=0.0) + 64 * u
    shared = options["second_moments"] == "shared"
    l2_decay = 0.0 if options["decoupled_weight_decay"] else options["weight_decay"]
    sign = -1.0 if options["maximize"] else 1.0
    scaled = {k: (x.scale.get(k, 1.0) if balance else 1.0) for k in grads}
    balanced = {k: scaled[k] * g.value for k, g in grads.items()}
    errors = {k: np.abs(scaled[k]) * (g.slack + (rel + 8 * u) * np.abs(g.value)) for k, g in grads.items()}
    size, total = (np.sum(list(of), axis=0) for of in (map(np.abs, balanced.values()), balanced.values()))
    of_total = (
        np.sum(list(errors.values()), axis=0) + (len(grads) + 2) * u * size
    )  # which is left in p.grad without decay if shared
    decayed = (1 if shared else len(grads)) * l2_decay * np.abs(p) if l2_decay else 0.0
    size, error = size + decayed, of_total + (len(grads) + 10) * u * decayed
    old_v = {suffix: old.get(f"exp_avg_sq{suffix}", np.zeros_like(p)) for suffix in x.v}
    squared: dict[int | str, tuple[Array, Array]]
    if shared:
        squared = {"": (sign * total + l2_decay * p, error)}
    else:
        of_decay = 8 * u * decayed
        squared = {k: (sign * h + l2_decay * p, errors[k] + of_decay) for k, h in balanced.items()}
    slack |= {f"exp_avg_sq{suffix}": np.zeros_like(p) for suffix in x.v}
    for suffix, (h, of_h) in squared.items():
        of_square = (1 - b2) * (2 * np.abs(h) * of_h + of_h**2) + 4 * u * (old_v[suffix] + h**2)
        slack[f"exp_avg_sq{suffix}"] = 2 * of_square + 1e-36
    slack |= {f"max_exp_avg_sq{suffix}": slack[f"exp_avg_sq{suffix}"] for suffix in x.v_max}
    slack["exp_avg"] = 2 * ((1 - b1) * error + 4 * u * (np.abs(old.get("exp_avg", 0.0)) + size)) + 1e-36
    slack["param"] = param_slack(p, x, slack, dtype, options)
    combined = total if shared else np.sum([h for h, _ in squared.values()], axis=0)
    if not balance:
        x.ema = {}
    of_combined = 2 * ((of_total if shared else error) + ROUNDOFF[dtype] * np.abs(combined))
    return Prediction(to_values(x), slack, dict(x.scale), rel + 8 * u, combined, of_combined)


def norm_slack(old: Values, x: Parameter, grads: Mapping[int, Grad], u: float, options: dict[str, Any]) -> Values:
    """Return the bounds of the running norms."""
    slack: Values = {}
    operations = 8 / (1 - options["betas"][2]) if options["norms"] == "corrected" else 8  # as for ``of_size`` below
    for k, e in x.ema.items():
        before, of_norm, norm = old.get(f"norm_avg{k}", 0.0), 0.0, 0.0
        if k in grads and np.isfinite(norm := float(np.linalg.norm(grads[k].value))):
            of_norm = float(np.linalg.norm(grads[k].slack)) + (grads[k].value.size + 8) * u * norm
            if 0 < abs(norm - TINY_NORM) <= of_norm:
                raise Unsure
        else:
            norm = 0.0
        slack[f"norm_avg{k}"] = 2 * of_norm + operations * u * (before + norm)
        if abs(e - TINY_NORM) <= slack[f"norm_avg{k}"]:
            raise Unsure
    return slack


def param_slack(p: Array, x: Parameter, slack: Values, dtype: torch.dtype, options: dict[str, Any]) -> Array:
    """Return the bound of the parameter: the quotient's over all moments within theirs, and roundings."""
    u, eps, (b1, b2) = ROUNDOFF[arithmetic(dtype)], options["eps"], options["betas"][:2]
    prefix, maxima = ("max_exp_avg_sq", x.v_max) if options["amsgrad"] else ("exp_avg_sq", x.v)
    low = np.max([v - slack[f"{prefix}{suffix}"] for suffix, v in maxima.items()], axis=0)
    high = np.max([v + slack[f"{prefix}{suffix}"] for suffix, v in maxima.items()], axis=0)
    middle = np.max(list(maxima.values()), axis=0)
    correction = np.sqrt(1 - b2**x.t)
    # Where 1 - beta is made of a rounded beta, it has an error of u, and 1 - beta**t at most the same share of it.
    of_size, of_root = 8 * u / (1 - b1) + 8 * u, 8 * u / (1 - b2) + 8 * u
    least, most = ((np.sqrt(np.maximum(v, 0.0)) / correction + eps) for v in (low, high))
    least, most = least * (1 - of_root), most * (1 + of_root)
    quotient = x.m / (np.sqrt(middle) / correction + eps)
    ends = [(x.m + side * slack["exp_avg"]) / bound for side in (-1, 1) for bound in (least, most)]
    farthest = np.max([np.abs(end - quotient) for end in ends], axis=0)
    largest = np.max([np.abs(end) for end in ends], axis=0)
    step_size = options["lr"] / (1 - b1**x.t)
    bound = step_size * (farthest + of_size * largest) + 8 * u * (np.abs(p) + np.abs(x.value - p) + step_size * largest)
    return 1.01 * (bound + ROUNDOFF[dtype] * (np.abs(x.value) + bound))


def squares(grads: Iterable[Grad]) -> tuple[float, float, int]:
    """Return the sum of the squares of all elements, its bound, and the number of elements."""
    square, error, size = 0.0, 0.0, 0
    with np.errstate(all="ignore"):
        for g in grads:
            square += float(np.sum(g.value**2))
            error += float(np.sum(2 * np.abs(g.value) * g.slack + g.slack**2))
            size += g.value.size
    return square, error, size
