"""Cases of the native CPU kernels that compare everything a step writes; see sanitized.py for how they are run.

As a program it runs them in a process of their own: on one instruction set, with or without a sanitized module.
"""

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtadam_fused import MTAdam
from mtadam_fused.backends import Backend, native
from mtadam_fused.optimizer import TermOptimizer
from oracles.numpy_oracle import Parameter
from oracles.tolerances import check_values
from tests.kernels.single_numbers import NARROW, check_single_numbers
from tests.support.cases import DTYPES, Case, CombinedCase
from tests.support.eigen import check_eigen
from tests.support.guard_pages import beside_guards, ends_of_overruns, is_guarded
from tests.support.min_norm import check_min_norm
from tests.support.pcgrad import check_kernel

# Of the value, and of the largest that was added up: terms cancel.
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}

# Around a block (32 elements of float32 in AVX-512), a pass (512), a tile (1024) and a chunk (8192) of the kernels.
SHAPES = ((0,), (1,), (3,), (31,), (127,), (129,), (8195,), ())
LAYOUTS = ("contiguous", "offset", "contiguous", "contiguous", "offset", "offset", "contiguous", "contiguous")
LARGE = ((70_001,), (3,), (50_000,))  # enough for several threads


# -- cases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StrictCase(Case):
    """Compares the moments, the step counts, the scales and the combined gradients too."""

    wide: bool = False  # whether the gradients are float32, whatever the parameters are

    def optimizer(self, params: list[nn.Parameter], backend: str | Backend) -> TermOptimizer:
        made = super().optimizer(params, backend)
        made.keep_combined_grad = True
        return made

    def params(self, random: np.random.Generator) -> list[nn.Parameter]:
        made = super().params(random)
        for p in made if self.wide else ():
            p.grad_dtype = None
        return made

    def grads(self, random: np.random.Generator, params: list[nn.Parameter]) -> list[dict[int, Tensor]]:
        return super(StrictCase, replace(self, dtype=torch.float32) if self.wide else self).grads(random, params)

    def check_scalars(
        self, optimizer: TermOptimizer, models: list[Parameter], grads: list[dict[int, Tensor]], fault: str | None
    ) -> None:
        super().check_scalars(optimizer, models, grads, fault)
        for row, (x, of_terms) in enumerate(zip(models, grads, strict=True)):
            p = optimizer.param_groups[0]["params"][row]
            state = optimizer.state.get(p, {})
            assert state.get("step", 0) == x.t
            seconds = [second.max(initial=0.0) for second in x.v.values()]
            beta2 = self.options.get("betas", (0.9, 0.999))[1]
            largest = (max(seconds, default=0.0) / (1 - beta2)) ** 0.5  # of the gradients that were added up
            for name, expected in self.moments(x).items():
                check_closely(state[name], expected, largest if name == "exp_avg" else max(seconds))
            if of_terms:
                assert p.grad is not None
                check_closely(p.grad, self.combined(x, of_terms), largest)
        self.check_scales(optimizer, models, grads)

    def moments(self, x: Parameter) -> dict[str, np.ndarray]:
        found = {"exp_avg": x.m} if x.t else {}
        for k, second in x.v.items():
            found[f"exp_avg_sq{k}"] = second
            if self.options.get("amsgrad"):
                found[f"max_exp_avg_sq{k}"] = x.v_max[k]
        return found

    def combined(self, x: Parameter, of_terms: dict[int, Tensor]) -> np.ndarray:
        if self.options.get("second_moments") != "shared":
            return x.combined
        return np.asarray(sum(x.scale[k] * g.double().numpy() for k, g in of_terms.items()))  # without weight decay

    def check_scales(self, optimizer: TermOptimizer, models: list[Parameter], grads: list[dict[int, Tensor]]) -> None:
        assert isinstance(optimizer, MTAdam)
        for k, scales in optimizer.term_scales().items():
            for row, x in enumerate(models):
                if k in grads[row] and k in x.ema:
                    check_values(scales[row], np.asarray(x.scale[k]), RELATIVE[scales.dtype])


@dataclass(frozen=True)
class StrictCombinedCase(StrictCase, CombinedCase):
    """The same of CombinedAdam, whose dot products ``CombinedCase`` compares."""

    def moments(self, x: Parameter) -> dict[str, np.ndarray]:
        return {name.removesuffix("0"): expected for name, expected in super().moments(x).items()}

    def combined(self, x: Parameter, of_terms: dict[int, Tensor]) -> np.ndarray:
        return np.asarray(sum(self.used[k] * g.double().numpy() for k, g in of_terms.items()))

    def check_scales(self, optimizer: TermOptimizer, models: list[Parameter], grads: list[dict[int, Tensor]]) -> None:
        pass


def check_closely(actual: Tensor, expected: np.ndarray, largest: float) -> None:
    relative = RELATIVE[actual.dtype]
    check_values(actual, expected, relative, absolute=relative * largest + 1e-30)


PLANS: tuple[dict[str, Any], ...] = (
    {"terms": 1, "options": {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1, "maximize": True}},
    {"terms": 1, "options": {"lr": 0.1, "weight_decay": 0.1, "maximize": True, "second_moments": "shared"}},
    {
        "terms": 2,
        "absent": 0.3,
        "zero": 0.3,
        "options": {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1, "betas": (0.9, 0.5, 0.9)},
    },
    {"terms": 3, "absent": 0.3, "options": {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}},
    {
        "terms": 5,
        "absent": 0.3,
        "zero": 0.3,
        "weights": (0.5, 1.0, 3.0, 1.0, 2.0),
        "options": {"lr": 0.1, "maximize": True, "norm_init": "first_nonzero", "betas": (0.5, 0.9, 0.6), "eps": 1e-2},
    },
    {
        "terms": 3,
        "absent": 0.3,
        "zero": 0.3,
        "options": {
            **{"lr": 0.1, "amsgrad": True, "weight_decay": 0.1, "betas": (0.9, 0.5, 0.9)},
            **{"anchor": "none", "norms": "corrected", "second_moments": "shared"},
        },
    },
    {
        "terms": 4,
        "absent": 0.3,
        "weights": (0.5, 1.0, 3.0, 2.0),
        "options": {"lr": 0.1, "maximize": True, "anchor": 1, "norms": "peak", "second_moments": "shared"},
    },
    {
        "terms": 16,
        "absent": 0.3,
        "options": {
            **{"lr": 0.1, "weight_decay": 0.1, "maximize": True, "betas": (0.9, 0.999, 0.3)},
            **{"anchor": "geometric_mean", "norms": "decaying_peak"},
        },
    },
    {"terms": 7, "absent": 0.3, "options": {"lr": 0.1, "amsgrad": True, "betas": (0.9, 0.5, 0.9)}},  # in two passes
)


def all_cases(dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Case]:
    """Return every plan in every pair of types of parameters and gradients, of MTAdam and of CombinedAdam."""
    found: list[Case] = []
    for dtype in dtypes:
        for wide in (False, True) if dtype in NARROW and hasattr(nn.Parameter, "grad_dtype") else (False,):
            for seed, plan in enumerate(PLANS):
                case = StrictCase(dtype, SHAPES, LAYOUTS, LAYOUTS[::-1], seed=seed, steps=3, wide=wide, **plan)
                found += [case, StrictCombinedCase.like(case)]
    return found


def large_cases() -> list[Case]:
    """Return cases that several threads share."""
    contiguous = ("contiguous",) * len(LARGE)
    mtadam = [StrictCase(dtype, LARGE, contiguous, contiguous, terms=3, seed=9, steps=2) for dtype in DTYPES]
    return [*mtadam, *(StrictCombinedCase.like(replace(case, terms=5)) for case in mtadam)]


# -- running -----------------------------------------------------------------------------------------------------------


def digest(of_cases: list[Case], backend: str = "cpu") -> str:
    """Run cases, and hash all that their steps wrote."""
    found = hashlib.sha256()
    for case in of_cases:
        optimizer = case.run(backend)
        values = [table.scales for table in optimizer._table_cache._tables]
        values += [t.norms if t.layout.has_norms else t.gram for t in optimizer._table_cache._tables]
        for p in optimizer.param_groups[0]["params"]:
            values += [p.detach(), *optimizer.state.get(p, {}).values(), *([] if p.grad is None else [p.grad])]
        for value in values:
            found.update(torch.cat([value.flatten()]).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_placement() -> None:
    """Check that all that a step reads or writes is guarded."""
    shape, layout = ((129,),), ("contiguous",)
    optimizer = StrictCase(torch.float32, shape, layout, layout, 1, 0, options={"amsgrad": True}).run("cpu")
    (p,) = optimizer.param_groups[0]["params"]
    assert p.grad is not None
    large = [value for value in optimizer.state[p].values() if value.shape == p.shape]
    assert all(map(is_guarded, (p, p.grad, *large)))
    assert len(large) == 3


def digests_of_threads(counts: list[int]) -> dict[str, str]:
    found = {}
    for count in counts:
        torch.set_num_threads(count)
        found[f"{count} threads"] = digest(large_cases())
    return found


def check_rules() -> None:
    """Check the kernels of rules."""
    check_kernel(native.module.pcgrad)
    check_eigen(native.module.symmetric_eigen)
    check_min_norm(native.module.min_norm)


def run_random_cases() -> None:
    from tests.kernels import test_properties
    from tests.optimizer import test_combined_adam

    test_properties.test_any_case("cpu")
    test_combined_adam.test_any_case(backend="cpu")


def main() -> None:
    """Run what the first argument says, a JSON object, and print another."""
    wanted = json.loads(sys.argv[1])
    if "library" in wanted:
        from tests.support.cuda_emulator import load

        native.module = load(Path(wanted["library"]))
    torch.set_num_threads(1)
    found: dict[str, Any] = {"isa": native.module.instruction_set(), "threading": native.module.threading()}
    if "overrun" in wanted:  # before there are threads, which a fork does without
        found |= ends_of_overruns(wanted["overrun"])
    if "all" in wanted:
        found["all"] = digest(all_cases())
    if "guards" in wanted:
        with beside_guards():
            found["all"] = digest(all_cases())
            check_placement()
    if "numbers" in wanted:
        check_single_numbers("cpu")
    if "rules" in wanted:
        check_rules()
    if "random" in wanted:
        run_random_cases()
    found |= digests_of_threads(wanted.get("threads", []))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
