"""Every formula of a step in the three languages that state it, against one float64 formula in NumPy."""

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oracles.tolerances import TooFar, check_values
from tests.support.formulas import TERMS, Arrays, Language, cpp, python
from tests.support.triton_interpreter import INTERPRETED

ROOT = Path(__file__).parents[2]
COUNT = 64
TINY_NORM = 1e-10
LANGUAGES = ("python", "C++", "triton")
TOLERANCES: dict[type, float] = {np.float64: 1e-13, np.float32: 2e-6}

Draw = Callable[[np.random.Generator], np.ndarray]


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> Language:
    if request.param == "C++" and not shutil.which("g++"):
        pytest.skip("no g++ to compile the formulas with")
    if request.param == "triton":
        if not INTERPRETED:
            pytest.skip("Triton's interpreter is not to be had")
        from tests.kernels.triton_formulas import in_triton

        return in_triton
    return python if request.param == "python" else cpp


# -- arguments ---------------------------------------------------------------------------------------------------------


def norm(random: np.random.Generator) -> np.ndarray:
    """Draw norms of all sizes, among them zeros, tiny ones, infinities and NaN."""
    special = random.choice([0.0, 1e-11, 9e-11, 2e-10, np.inf, np.nan], COUNT)
    return np.where(random.random(COUNT) < 0.4, special, np.exp(random.uniform(-30, 30, COUNT)))


def finite_norm(random: np.random.Generator) -> np.ndarray:
    return np.nan_to_num(norm(random), nan=1e-3, posinf=0.0)


def number(random: np.random.Generator) -> np.ndarray:
    return random.standard_normal(COUNT)


def number_or_nan(random: np.random.Generator) -> np.ndarray:
    return np.where(random.random(COUNT) < 0.2, np.nan, number(random))


def positive(random: np.random.Generator) -> np.ndarray:
    return np.exp(random.uniform(-3, 3, COUNT))


def share(random: np.random.Generator) -> np.ndarray:
    return random.uniform(0.05, 0.95, COUNT)


def flag(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 2, COUNT).astype(np.float64)


def sign(random: np.random.Generator) -> np.ndarray:
    return 2 * flag(random) - 1


def step(random: np.random.Generator) -> np.ndarray:
    return random.integers(1, 50, COUNT).astype(np.float64)


def norms_code(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 4, COUNT).astype(np.float64)


def anchor(random: np.random.Generator) -> np.ndarray:
    """Draw what each layer is balanced against: a code, or the position of a term."""
    return np.repeat(np.resize([-3.0, -2.0, -1.0, *range(TERMS)], COUNT // TERMS), TERMS)


# -- formulas in NumPy -------------------------------------------------------------------------------------------------


def norm_decay(beta3: np.ndarray, t: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Corrected: the old average's share in that of t norms, whose weights are beta3**i for the norm of i steps ago."""
    weights = [b ** np.arange(int(n)) for b, n in zip(beta3, t, strict=True)]
    shares = np.array([w[1:].sum() / w.sum() for w in weights])
    return np.select([norms == 1, norms == 2], [shares, 1.0], beta3)


def running_norm(norm_avg: Any, norm: Any, decay: Any, first_nonzero: Any, peak: Any) -> np.ndarray:
    found = norm_avg.copy()
    for i in np.flatnonzero(np.isfinite(norm)):
        if not np.isnan(norm_avg[i]):
            moved = decay[i] * norm_avg[i] + (1 - decay[i]) * norm[i]
            found[i] = max(decay[i] * norm_avg[i], norm[i]) if peak[i] else moved
        elif norm[i] > TINY_NORM or not first_nonzero[i]:
            found[i] = norm[i]
    return found


def anchor_of(norm_avg: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    def of_layer(layer: np.ndarray, code: int) -> float:
        active = layer[layer > TINY_NORM]
        if code == -2:
            return 1.0
        if len(active) == 0:
            return 0.0
        if code >= 0 and layer[code] > TINY_NORM:
            return layer[code]
        return active[0] if code == -1 else float(np.prod(active ** (1 / len(active))))

    layers = zip(norm_avg.reshape(-1, TERMS), anchor[::TERMS], strict=True)
    return np.repeat([of_layer(layer, int(code)) for layer, code in layers], TERMS)


def term_scale(norm_avg: np.ndarray, anchor: np.ndarray, weight: np.ndarray) -> np.ndarray:
    is_active = norm_avg > TINY_NORM
    return np.where(is_active, weight * (anchor / np.where(is_active, norm_avg, 1.0)), 1.0)


def second_moment(exp_avg_sq: np.ndarray, h: np.ndarray, beta2: np.ndarray) -> np.ndarray:
    return exp_avg_sq + (1 - beta2) * (h**2 - exp_avg_sq)


def add_term(grad: Any, scale: Any, param: Any, exp_avg_sq: Any, combined: Any, grad_sign: Any, *row: Any) -> Arrays:
    beta2, l2_decay = row
    h = grad_sign * scale * grad + l2_decay * param
    return [second_moment(exp_avg_sq, h, beta2), combined + h]


def updated_param(param: Any, exp_avg: Any, largest: Any, lr: Any, beta1: Any, beta2: Any, *rest: Any) -> np.ndarray:
    eps, decoupled_decay, t = rest
    corrected, bound = exp_avg / (1 - beta1**t), np.sqrt(largest / (1 - beta2**t)) + eps
    return param * (1 - lr * decoupled_decay) - lr * corrected / bound


# Of each function of update_math.h: its arguments, and the formula.
FORMULAS: dict[str, tuple[tuple[Draw, ...], Callable[..., Any]]] = {
    "has_started": ((norm,), lambda norm_avg: ~np.isnan(norm_avg)),
    "is_finite": ((norm,), np.isfinite),
    "norm_decay": ((share, step, norms_code), norm_decay),
    "running_norm": ((norm, norm, share, flag, flag), running_norm),
    "anchor_of": ((finite_norm, anchor), anchor_of),
    "term_scale": ((finite_norm, positive, number), term_scale),
    "balanced_gradient": ((number, number, number, positive), lambda grad, scale, p, decay: grad * scale + p * decay),
    "add_weighted": ((number, number, number), lambda total, grad, weight: total + weight * grad),
    "first_moment": ((number, number, share), lambda m, combined, beta1: m + (1 - beta1) * (combined - m)),
    "second_moment": ((positive, number, share), second_moment),
    "nan_max": ((number_or_nan, number_or_nan), np.maximum),
    "add_term": ((number, positive, number, positive, number, sign, share, positive), add_term),
    "updated_param": ((number, number, positive, share, share, share, positive, share, step), updated_param),
}


def check(name: str, language: Language, dtype: type, fault: int | None = None) -> None:
    """Compare a formula of a language with NumPy's.

    Args:
        fault: the argument that NumPy is given one percent too large, or its opposite where it is a flag or a sign,
            one more step, or another anchor.

    Raises:
        TooFar: they disagree.
    """
    draws, oracle = FORMULAS[name]
    random = np.random.default_rng(0)
    arguments = [draw(random).astype(dtype).astype(np.float64) for draw in draws]
    found = language(name, arguments, dtype)
    if fault is not None:
        changed = arguments[fault]
        faulty: dict[Draw, np.ndarray] = {
            flag: 1 - changed,
            sign: -changed,
            step: changed + 1,
            anchor: np.roll(changed, TERMS),
        }
        arguments[fault] = faulty.get(draws[fault], 1.01 * changed)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = oracle(*arguments)
    size = max(1.0, *(np.abs(a[np.isfinite(a)]).max() for a in arguments if a is not None)) if name == "add_term" else 1
    for actual, wanted in zip(found, expected if isinstance(expected, list) else [expected], strict=True):
        check_values(torch.from_numpy(np.asarray(actual)), wanted, TOLERANCES[dtype], TOLERANCES[dtype] * size)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str, language: Language, dtype: type) -> None:
    check(name, language, dtype)


# The predicates look at no size.
@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, i) for name, (draws, _) in FORMULAS.items() for i in range(len(draws)) if len(draws) > 1],
)
def test_each_argument_counts(name: str, argument: int) -> None:
    with pytest.raises(TooFar):
        check(name, python, np.float64, fault=argument)


def test_every_function_is_tested() -> None:
    """The functions of update_math.h are in the table, in reference.py and in Triton's update_math.py."""
    from mtadam_fused import reference

    names = set(re.findall(r"^MTADAM_FN \S+(?:<C>)? (\w+)\(", (ROOT / "csrc/update_math.h").read_text(), re.MULTILINE))
    names.remove("square_root")  # what sqrt is elsewhere, for vectors too
    assert names == {*FORMULAS, "step_factors"}  # whose result updated_param takes
    assert all(inspect.isfunction(getattr(reference, name)) for name in names)
    in_triton = re.findall(r"^def (\w+)\(", (ROOT / "triton_kernels/update_math.py").read_text(), re.MULTILINE)
    assert names <= set(in_triton)
