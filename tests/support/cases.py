"""Cases of the optimizer: one input library for the tests of every backend."""

from copy import deepcopy
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.triton_interpreter import INTERPRETED  # before mtadam_fused, which reads what it sets

# isort: split

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.backends import Backend
from mtadam_fused.optimizer import TermOptimizer
from mtadam_fused.reference import arithmetic_type
from mtadam_fused.rules import FixedWeights
from oracles import numpy_oracle
from oracles.numpy_oracle import CHOICES, MISTAKES, Parameter, step
from oracles.tolerances import TooFar, check_params, check_values

CPU_BACKENDS = ("reference", "cpu", "triton") if INTERPRETED else ("reference", "cpu")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((0,), (1,), (3,), (4,), (5, 7), (2, 3, 4, 5), (4097,), (129, 33), ())
LAYOUTS = ("contiguous", "transposed", "channels_last", "sliced", "offset")
every_choice = pytest.mark.parametrize(
    "choices",
    [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())],
    ids=lambda choices: ", ".join(map(str, choices.values())),
)
ROUGH: dict[str, Any] = {"lr": 0.01}
DECAYED: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1}


def fewer(count: int, backend: str | Backend) -> int:
    """Return ``count`` steps, examples or elements, a tenth for Triton's interpreter, which is slow."""
    return max(count // 10, 2) if backend == "triton" else count


def lay_out(value: Tensor, layout: str) -> Tensor:
    """Return ``value`` in a memory layout, as far as its shape has it."""
    if layout == "transposed" and value.dim() >= 2:
        return value.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels_last" and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    if layout == "sliced" and value.dim() >= 1:
        wide = value.new_zeros((*value.shape[:-1], 2 * value.shape[-1]))
        wide[..., ::2] = value
        return wide[..., ::2]
    if layout == "offset":  # aligned to an element only
        flat = value.new_zeros(value.numel() + 1)
        flat[1:] = value.reshape(-1)
        return flat[1:].view(value.shape)
    return value.contiguous()


def rounding_of(dtype: torch.dtype) -> float:
    """Return a unit in the last place, of 1, in the arithmetic of parameters of ``dtype``."""
    return torch.finfo(arithmetic_type(dtype)).eps


@dataclass(frozen=True)
class Case:
    """A model of some parameters, and what trains it."""

    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[str, ...]  # of the parameters
    grad_layouts: tuple[str, ...]
    terms: int
    seed: int
    absent: float = 0.0  # the share of pairs that a step leaves out
    zero: float = 0.0  # the share of gradients that are zero
    options: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] | None = None
    steps: int = 4
    device: str = "cpu"

    # The options of a case that shows them.
    FAULTS: ClassVar[dict[str, dict[str, Any]]] = {
        **dict.fromkeys((*numpy_oracle.FAULTS, "norms +1 %", "scales +1 %"), ROUGH),
        "decay after the update": DECAYED,
        **{fault: ROUGH | asked for fault, (asked, _) in MISTAKES.items()},
        "arithmetic mean": ROUGH | {"anchor": "geometric_mean"},
        "first for a silent anchor": ROUGH | {"anchor": 1},
        "late norm from zero": ROUGH | {"norms": "corrected"},
        "decay once per term": DECAYED | {"second_moments": "shared"},
    }

    @classmethod
    def showing(cls, fault: str, dtype: torch.dtype, terms: int = 3, device: str = "cpu") -> "Case":
        """Return a case in which a fault is seen."""
        both, options = ("contiguous",) * 2, cls.FAULTS[fault]
        return cls(dtype, ((31, 33), (40,)), both, both, terms, 4, absent=0.3, options=options, steps=3, device=device)

    @classmethod
    def choosing(cls, choices: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> "Case":
        """Return a case of some of ``numpy_oracle.CHOICES`` in which everything else happens too."""
        shapes, layouts = ((0,), (3,), (5, 7), (1030,)), ("contiguous", "offset", "transposed", "contiguous")
        options = DECAYED | {"amsgrad": True, "maximize": True, "betas": (0.9, 0.99, 0.7)} | choices
        some: dict[str, Any] = {"absent": 0.3, "zero": 0.2, "weights": (0.5, 1.0, 3.0, 2.0, 1.0), "device": device}
        return cls(dtype, shapes, layouts, layouts[::-1], terms=5, seed=3, options=options, **some)

    def run(self, backend: str | Backend, fault: str | None = None) -> TermOptimizer:
        """Run the optimizer beside the oracle, and compare them at every step.

        Raises:
            TooFar: they disagree.
        """
        random = np.random.default_rng(self.seed)
        params = self.params(random)
        optimizer = self.optimizer(params, backend)
        models = [Parameter(p.detach().double().cpu().numpy().copy()) for p in params]
        for k in range(self.terms):  # registers the terms in order, whatever is absent at first
            with optimizer.term(k):
                pass
        for _ in range(self.steps):
            before = [p.detach().cpu() if p.is_cuda else p.detach().clone() for p in params]
            grads = self.grads(random, params)
            for k in range(self.terms):
                with optimizer.term(k):
                    for p, of_terms in zip(params, grads, strict=True):
                        p.grad = of_terms.get(k)
            optimizer.step()
            for p, b, x, of_terms in zip(params, before, models, grads, strict=True):
                x.value = b.double().numpy()  # from the stored value: rounding does not add up
                arrays = {k: g.double().cpu().numpy() for k, g in of_terms.items()}
                nudged = deepcopy(x)
                self.expect(nudged, arrays, fault, rounding=rounding_of(self.dtype))
                self.expect(x, arrays, fault)
                check_params(p.detach().cpu(), x.value, b, nudged.value)
            self.check_scalars(optimizer, models, grads, fault)
        return optimizer

    def optimizer(self, params: list[nn.Parameter], backend: str | Backend) -> TermOptimizer:
        return MTAdam(params, term_weights=self.weights, backend=backend, **self.options)

    def expect(self, x: Parameter, grads: dict[int, np.ndarray], fault: str | None, rounding: float = 0.0) -> None:
        """Advance ``x`` by the oracle's step."""
        weights = dict(enumerate(self.weights)) if self.weights else None
        step(x, grads, weights=weights, rounding=rounding, fault=fault, **self.options)

    def params(self, random: np.random.Generator) -> list[nn.Parameter]:
        arrays = (np.asarray(random.standard_normal(shape)) for shape in self.shapes)
        values = (torch.from_numpy(array).to(self.device, self.dtype) for array in arrays)
        return [nn.Parameter(lay_out(v, layout)) for v, layout in zip(values, self.layouts, strict=True)]

    def grads(self, random: np.random.Generator, params: list[nn.Parameter]) -> list[dict[int, Tensor]]:
        """Return each parameter's gradients by term; term k is 10 to the k % 4 times as large as term 0."""
        found: list[dict[int, Tensor]] = []
        for p, layout in zip(params, self.grad_layouts, strict=True):
            of_terms: dict[int, Tensor] = {}
            for k in range(self.terms):
                size = 0.0 if random.random() < self.zero else 10.0 ** (k % 4 - 1)
                array = np.asarray(random.standard_normal(tuple(p.shape)) * size)
                value = torch.from_numpy(array).to(self.device, self.dtype)
                if random.random() >= self.absent:
                    of_terms[k] = lay_out(value, layout)
            if self.one_sign:
                give_one_sign(of_terms)
            found.append(of_terms)
        return found

    @property
    def one_sign(self) -> bool:
        """Whether all of an element's gradients have one sign: where their sum cancels, float32 leaves nothing."""
        return self.dtype == torch.float32 and self.options.get("second_moments") == "shared"

    def check_scalars(
        self, optimizer: TermOptimizer, models: list[Parameter], grads: list[dict[int, Tensor]], fault: str | None
    ) -> None:
        """Compare the norms and scales that the optimizer reports, NaN where a term has not reached a parameter."""
        assert isinstance(optimizer, MTAdam)
        relative = 1e-12 if self.dtype == torch.float64 else 1e-5
        norms, scales = optimizer.running_norms(), optimizer.term_scales()
        for k in range(self.terms):
            expected_norms = np.array([x.ema.get(k, np.nan) for x in models])
            expected_scales = np.array([x.scale.get(k, np.nan) for x in models])
            check_values(norms[k], expected_norms * (1.01 if fault == "norms +1 %" else 1.0), relative)
            check_values(scales[k], expected_scales * (1.01 if fault == "scales +1 %" else 1.0), 2 * relative)


@dataclass(frozen=True)
class CombinedCase(Case):
    """A case of CombinedAdam with fixed weights, and of the dot products that a rule is given.

    The step is that of MTAdam's formula with one term, the weighted sum, so Adam's.
    """

    FAULTS: ClassVar[dict[str, dict[str, Any]]] = {
        **dict.fromkeys(("lr +1 %", "no bias correction", "no weights"), ROUGH),
        "decay after the update": DECAYED,
        **dict.fromkeys(("products without the last element", "products of other pairs"), ROUGH),
        "products of absent terms": ROUGH,
    }

    @classmethod
    def like(cls, case: Case) -> "CombinedCase":
        """Return ``case`` as one of CombinedAdam."""
        values = {field.name: getattr(case, field.name) for field in fields(case)}
        of_mtadam = {"norm_init", *CHOICES}
        options = {name: value for name, value in case.options.items() if name not in of_mtadam}
        options["betas"] = options.get("betas", (0.9, 0.999))[:2]
        return cls(**values | {"options": options})

    @property
    def used(self) -> tuple[float, ...]:
        return self.weights or tuple(0.5 + k for k in range(self.terms))

    def optimizer(self, params: list[nn.Parameter], backend: str | Backend) -> TermOptimizer:
        rule = FixedWeights(self.used)
        rule.needs_gram, rule.parameters = True, params
        return CombinedAdam(params, rule, backend=backend, **self.options)

    @property
    def one_sign(self) -> bool:
        return True

    def expect(self, x: Parameter, grads: dict[int, np.ndarray], fault: str | None, rounding: float = 0.0) -> None:
        weights = (1.0,) * self.terms if fault == "no weights" else self.used
        total = sum((weights[k] * (g + rounding * np.abs(g)) for k, g in grads.items()), start=np.zeros(()))
        step(x, {0: total} if grads else {}, fault=fault, **self.options)

    def check_scalars(
        self, optimizer: TermOptimizer, models: list[Parameter], grads: list[dict[int, Tensor]], fault: str | None
    ) -> None:
        """Compare each parameter's dot products, [K, K], with NumPy's."""
        if not any(grads):
            return
        for table in optimizer._table_cache._tables:
            for row, gram in zip(table.positions, table.gram.cpu().numpy(), strict=True):
                expected, size = products(grads[row], self.terms, fault)
                assert np.array_equal(gram, gram.T)
                if (np.abs(gram - expected) > GRAM_RELATIVE * size).any():
                    raise TooFar(f"{gram} is not {expected}")


def give_one_sign(of_terms: dict[int, Tensor]) -> None:
    """Give all of an element's gradients the sign of the first term that is not silent, in place."""
    signs = [g.sign() for g in of_terms.values() if g.any()][:1]
    for g in of_terms.values() if signs else ():
        g.abs_().mul_(signs[0])


GRAM_RELATIVE = 1e-14  # of the sum of the products' absolute values: some fifty roundings one after another, in float64


def products(grads: dict[int, Tensor], terms: int, fault: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the dot products of a parameter's gradients, [K, K], 0 where absent; and those of absolute values."""
    rows = np.zeros((terms, max((g.numel() for g in grads.values()), default=0)))
    for k, g in grads.items():
        rows[k] = g.double().cpu().numpy().ravel()
    if fault == "products without the last element":
        rows = rows[:, :-1]
    found, size = rows @ rows.T, np.abs(rows) @ np.abs(rows).T
    if fault == "products of other pairs":
        found = np.roll(found, 1, axis=0)
    if fault == "products of absent terms":
        found[found == 0] = 1.0
    return found, size


def check_combined_gradients(backend: str | Backend, device: str = "cpu") -> None:
    """Check what a step leaves in ``p.grad``: with a second moment per term also weight decay, for each term."""
    for second_moments, terms in product(CHOICES["second_moments"], (1, 2)):
        p = nn.Parameter(torch.full((300,), 2.0, device=device))
        options: dict[str, Any] = {"weight_decay": 0.5, "maximize": True, "second_moments": second_moments}
        optimizer = MTAdam([p], keep_combined_grad=True, backend=backend, **options)
        for term in range(terms):
            with optimizer.term(term):
                p.grad = torch.full_like(p, 3.0 + term)
        optimizer.step()
        expected = 3.0 * terms if second_moments == "shared" else (0.5 * 2.0 - 3.0) * terms
        torch.testing.assert_close(p.grad, torch.full_like(p, expected))


def check_wide_gradients(backend: str | Backend) -> None:
    """Check a step on float32 gradients of bfloat16 parameters, alone and beside bfloat16 ones."""
    p = nn.Parameter(torch.ones(300, dtype=torch.bfloat16))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("this torch keeps gradients in the type of the parameter")
    p.grad_dtype = None
    optimizer = MTAdam([p], lr=0.5, backend=backend)
    for dtype, term in ((torch.float32, 0), (torch.bfloat16, 1)):
        with optimizer.term(term):
            p.grad = torch.full((300,), 1.0 + term, dtype=dtype)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.zeros_like(p))
    assert optimizer.running_norms()[1][0].item() == pytest.approx(2 * 300**0.5)
