"""An independent oracle: MTAdam written out in NumPy float64, one parameter at a time, from the published rule.

It knows deliberate faults too, so that the tests can show that their comparisons reject them.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FAULTS = ("lr +1 %", "no bias correction", "wrong anchor", "decay after the update", "sum instead of max")

Array = np.ndarray


@dataclass
class Parameter:
    """One parameter and its state, as float64 arrays."""

    value: Array
    t: int = 0
    m: Any = 0.0
    v: dict[int, Array] = field(default_factory=dict)  # by term
    v_max: dict[int, Array] = field(default_factory=dict)
    ema: dict[int, float] = field(default_factory=dict)
    combined: Any = None
    scale: dict[int, float] = field(default_factory=dict)  # of every term that has a running norm


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
    rounding: float = 0.0,
    fault: str | None = None,
) -> None:
    """Advance ``parameter`` by one step with the gradients of the terms that are present.

    ``rounding`` is added to each scaled gradient, as a share of its absolute value: what arithmetic of less precision
    may do to each term alone.
    """
    if not grads:
        return
    x, p = parameter, parameter.value
    b1, b2, b3 = (*betas, 0.9)[:3]
    if fault == "lr +1 %":
        lr = lr * 1.01
    x.t += 1
    for k, g in grads.items():
        n = math.sqrt(float(np.sum(np.square(g))))
        if not math.isfinite(n):
            continue
        if k in x.ema:
            x.ema[k] = b3 * x.ema[k] + (1 - b3) * n
        elif norm_init == "first_step" or n > 1e-10:
            x.ema[k] = n
    loud = [k for k in sorted(x.ema) if x.ema[k] > 1e-10]
    x.scale = dict.fromkeys(x.ema, 1.0)
    for k in loud:
        anchor = loud[-1 if fault == "wrong anchor" else 0]
        x.scale[k] = (weights or {}).get(k, 1.0) * x.ema[anchor] / x.ema[k]
    total = np.zeros_like(p)
    for k, g in grads.items():
        h = x.scale.get(k, 1.0) * (-g if maximize else g)
        h = h + rounding * np.abs(h)
        if not decoupled_weight_decay and fault != "decay after the update":
            h = h + weight_decay * p
        total = total + h
        x.v[k] = b2 * x.v.get(k, np.zeros_like(p)) + (1 - b2) * h * h
    bounds = []
    for k in x.v:
        x.v_max[k] = np.maximum(x.v_max.get(k, np.zeros_like(p)), x.v[k])
        bounds.append(x.v_max[k] if amsgrad else x.v[k])
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
