"""An independent oracle: MTAdam written out in NumPy float64, one parameter at a time, from the published rule.

It knows deliberate faults too, so that the tests can show that their comparisons reject them.
"""

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

CHOICES: dict[str, tuple[Any, ...]] = {
    "anchor": ("first", "none", "geometric_mean", 1),
    "norms": ("average", "corrected", "peak", "decaying_peak"),
    "second_moments": ("per_term", "shared"),
}

FAULTS = ("lr +1 %", "no bias correction", "wrong anchor", "decay after the update", "sum instead of max")
FAULTS_OF_CHOICES = ("arithmetic mean", "first for a silent anchor", "late norm from zero", "decay once per term")
# Faults that take one choice for another: what is asked for, and what is done.
MISTAKES = {
    f"{name} {asked} taken for {done}": ({name: asked}, {name: done})
    for name, values in CHOICES.items()
    for asked, done in zip(values, values[1:] + values[:1], strict=True)
}

Array = np.ndarray


@dataclass
class Parameter:
    """One parameter and its state, as float64 arrays."""

    value: Array
    t: int = 0
    m: Any = 0.0
    v: dict[int | str, Array] = field(default_factory=dict)  # by the suffix of its name: a term, or "" for a shared one
    v_max: dict[int | str, Array] = field(default_factory=dict)
    norms: dict[int, list[float]] = field(default_factory=dict)  # one for each step
    ema: dict[int, float] = field(default_factory=dict)  # what is remembered of them
    combined: Any = None
    scale: dict[int, float] = field(default_factory=dict)  # of every term that has a running norm


def remember(norms: list[float], b3: float, choice: str) -> float:
    """Return the running norm after steps with ``norms``."""

    def average(e: float, n: float) -> float:
        return b3 * e + (1 - b3) * n

    if choice == "peak":
        return max(norms)
    if choice == "decaying_peak":
        return max(n * b3**age for age, n in enumerate(reversed(norms)))
    if choice == "corrected":
        return reduce(average, norms, 0.0) / (1 - b3 ** len(norms))
    return reduce(average, norms)


def anchor_norm(loud: dict[int, float], anchor: Any, fault: str | None) -> float:
    """Return the norm that those of ``loud``, the terms to balance, are brought to."""
    if anchor == "none":
        return 1.0
    values = list(loud.values())
    if anchor == "first" or (fault == "first for a silent anchor" and anchor not in loud):
        return values[-1 if fault == "wrong anchor" else 0]
    if anchor in loud:
        return loud[anchor]
    return float(np.mean(values) if fault == "arithmetic mean" else np.exp(np.mean(np.log(values))))


def step(
    parameter: Parameter,
    grads: dict[int, Array],
    *,
    lr: float = 1e-3,
    betas: tuple[float, ...] = (0.9, 0.999, 0.9),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    weights: dict[int, float] | None = None,
    norm_init: str = "first_step",
    anchor: Any = "first",
    norms: str = "average",
    second_moments: str = "per_term",
    rounding: float = 0.0,
    fault: str | None = None,
) -> None:
    """Advance ``parameter`` by one step with the gradients of the terms that are present.

    ``rounding`` is added to each scaled gradient, as a share of its absolute value: what arithmetic of less precision
    may do to each term alone.
    """
    if not grads:
        return
    done = {"anchor": anchor, "norms": norms, "second_moments": second_moments}
    if fault in MISTAKES:
        done |= MISTAKES[fault][1]
    x, p = parameter, parameter.value
    b1, b2, b3 = (*betas, 0.9)[:3]
    if fault == "lr +1 %":
        lr = lr * 1.01
    x.t += 1
    for k, g in grads.items():
        n = math.sqrt(float(np.sum(np.square(g))))
        if math.isfinite(n) and (k in x.norms or norm_init == "first_step" or n > 1e-10):
            before = 0.0 if fault == "late norm from zero" else n  # a late term's norm counts as that of earlier steps
            x.norms.setdefault(k, [before] * (x.t - 1)).append(n)
    for k, of_term in x.norms.items():
        if len(of_term) < x.t:
            of_term.append(x.ema[k])  # where no norm came, the running norm stays
        x.ema[k] = remember(of_term, b3, done["norms"])
    loud = {k: x.ema[k] for k in sorted(x.ema) if x.ema[k] > 1e-10}
    x.scale = dict.fromkeys(x.ema, 1.0)
    for k, e in loud.items():
        x.scale[k] = (weights or {}).get(k, 1.0) * anchor_norm(loud, done["anchor"], fault) / e
    l2_decay = 0.0 if decoupled_weight_decay or fault == "decay after the update" else weight_decay
    shared = done["second_moments"] == "shared"
    gradients: dict[int | str, Array] = {}
    for k, g in grads.items():
        h = x.scale.get(k, 1.0) * (-g if maximize else g)
        if rounding:  # not for 0: infinity times 0 is no number
            h = h + rounding * np.abs(h)
        gradients[k] = h if shared else h + l2_decay * p
    total = np.sum(list(gradients.values()), axis=0)
    if shared:
        total = total + (len(grads) if fault == "decay once per term" else 1) * l2_decay * p
        gradients = {"": total}
    for suffix, h in gradients.items():
        x.v[suffix] = b2 * x.v.get(suffix, np.zeros_like(p)) + (1 - b2) * h * h
    bounds = []
    for suffix, v in x.v.items():
        x.v_max[suffix] = np.maximum(x.v_max.get(suffix, np.zeros_like(p)), v)
        bounds.append(x.v_max[suffix] if amsgrad else v)
    bound = np.sum(bounds, axis=0) if fault == "sum instead of max" else np.max(bounds, axis=0)
    x.combined = total
    x.m = b1 * x.m + (1 - b1) * total
    c1, c2 = (1.0, 1.0) if fault == "no bias correction" else (1 - b1**x.t, 1 - b2**x.t)
    if decoupled_weight_decay and fault != "decay after the update":
        p = p * (1 - lr * weight_decay)
    p = p - lr / c1 * x.m / (np.sqrt(bound) / math.sqrt(c2) + eps)
    if fault == "decay after the update":
        p = p * (1 - lr * weight_decay)
    parameter.value = p
