"""The functions of triton_kernels/update_math.py in a kernel, for Triton's interpreter."""

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from mtadam_fused.triton_kernels import update_math as m

from tests.support.formulas import TERMS, Arrays


@triton.jit
def evaluate(x, out, COUNT: tl.constexpr, NAME: tl.constexpr, WIDTH: tl.constexpr):
    """Evaluate the function NAME for each of COUNT columns of ``x``; WIDTH consecutive ones are a layer's terms."""
    i = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    C: tl.constexpr = x.dtype.element_ty
    a, b, c = tl.load(x + i), tl.load(x + COUNT + i), tl.load(x + 2 * COUNT + i)
    d, e, f = tl.load(x + 3 * COUNT + i), tl.load(x + 4 * COUNT + i), tl.load(x + 5 * COUNT + i)
    g, h, j = tl.load(x + 6 * COUNT + i), tl.load(x + 7 * COUNT + i), tl.load(x + 8 * COUNT + i)
    second = tl.zeros([WIDTH], C)
    if NAME == "has_started":
        first = m.has_started(a).to(C)
    elif NAME == "is_finite":
        first = m.is_finite(a).to(C)
    elif NAME == "running_norm":
        first = m.running_norm(a, b, c, d != 0, e != 0)
    elif NAME == "norm_decay":
        first = m.norm_decay(a.to(tl.float64), b.to(tl.float64), c, C)
    elif NAME == "anchor_of":
        first = second + m.anchor_of(a, tl.max(b, axis=0), WIDTH)
    elif NAME == "term_scale":
        first = m.term_scale(a, b, c)
    elif NAME == "balanced_gradient":
        first = m.balanced_gradient(a, b, c, d)
    elif NAME == "add_weighted":
        first = m.add_weighted(a, b, c)
    elif NAME == "first_moment":
        first = m.first_moment(a, b, c, 1 - c)
    elif NAME == "second_moment":
        first = m.second_moment(a, b, c, 1 - c)
    elif NAME == "nan_max":
        first = m.nan_max(a, b)
    elif NAME == "add_term":
        first, second = m.add_term(a, b, c, d, e, (f, g, 1 - g, g, 1 - g, h))
    else:
        lr, beta1, beta2 = d.to(tl.float64), e.to(tl.float64), f.to(tl.float64)
        eps, decay, step = g.to(tl.float64), h.to(tl.float64), j.to(tl.float64)
        first = m.updated_param(
            a, b, c, m.step_factors(lr, beta1, beta2, eps, decay, step, tl.full([], 1.0, tl.float64), C)
        )
    tl.store(out + i, first)
    tl.store(out + COUNT + i, second)


def in_triton(name: str, arguments: Arrays, dtype: type) -> Arrays:
    """Evaluate a function of triton_kernels/update_math.py."""
    count = len(arguments[0])
    x = torch.zeros((9, count), dtype=torch.from_numpy(np.zeros(1, dtype)).dtype)
    for row, argument in zip(x, arguments, strict=False):
        row.copy_(torch.from_numpy(argument))
    out: Any = torch.zeros_like(x[:2])
    evaluate[(count // TERMS,)](x, out, count, name, TERMS)
    results = 2 if name == "add_term" else 1
    return [row.numpy() for row in out[:results]]
