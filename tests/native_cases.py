"""Cases of the native CPU kernels that compare everything a step writes; see sanitized.py for how they are run.

As a program it runs them in a process of their own: on one instruction set, with or without a sanitized module.
"""

import ctypes
import hashlib
import json
import mmap
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import cases
import numpy as np
import torch
from cases import DTYPES, Case, CombinedCase
from closeness import check_values
from formula import Parameter
from torch import Tensor, nn

from mtadam_fused import MTAdam
from mtadam_fused.backends import native
from mtadam_fused.fused_optimizer import FusedOptimizer

NARROW = (torch.bfloat16, torch.float16)
BUFFERS = ("param", "exp_avg", "combined", "grad", "exp_avg_sq0", "max_exp_avg_sq0")

# Of the value, and of the largest that was added up: terms cancel.
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}

# Around a block (128 elements), a tile (1024) and a chunk (4096) of the kernels.
SHAPES = ((0,), (1,), (3,), (127,), (129,), (4097,), ())
LAYOUTS = ("contiguous", "offset", "contiguous", "offset", "offset", "contiguous", "contiguous")
LARGE = ((70_001,), (3,), (50_000,))  # enough for several threads


# -- cases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StrictCase(Case):
    """Compares the moments, the step counts, the scales and the combined gradients too."""

    wide: bool = False  # whether the gradients are float32, whatever the parameters are

    def optimizer(self, params: list[nn.Parameter], backend: str) -> FusedOptimizer:
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
        self, optimizer: FusedOptimizer, models: list[Parameter], grads: list[dict[int, Tensor]], fault: str | None
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
        return x.combined

    def check_scales(self, optimizer: FusedOptimizer, models: list[Parameter], grads: list[dict[int, Tensor]]) -> None:
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

    def check_scales(self, optimizer: FusedOptimizer, models: list[Parameter], grads: list[dict[int, Tensor]]) -> None:
        pass


def check_closely(actual: Tensor, expected: np.ndarray, largest: float) -> None:
    relative = RELATIVE[actual.dtype]
    check_values(actual, expected, relative, absolute=relative * largest + 1e-30)


PLANS: tuple[dict[str, Any], ...] = (
    {"terms": 1, "options": {"lr": 0.1, "amsgrad": True}},
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
    {"terms": 16, "absent": 0.3, "options": {"lr": 0.1, "weight_decay": 0.1, "maximize": True}},
)


def all_cases(dtypes: tuple[torch.dtype, ...] = DTYPES, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Case]:
    """Every plan in every pair of types of parameters and gradients, of MTAdam and of CombinedAdam."""
    layouts = LAYOUTS[: len(shapes)]
    found: list[Case] = []
    for dtype in dtypes:
        for wide in (False, True) if dtype in NARROW and hasattr(nn.Parameter, "grad_dtype") else (False,):
            for seed, plan in enumerate(PLANS):
                case = StrictCase(dtype, shapes, layouts, layouts[::-1], seed=seed, steps=3, wide=wide, **plan)
                found += [case, StrictCombinedCase.like(case)]
    return found


def large_cases() -> list[Case]:
    """Cases that several threads share."""
    contiguous = ("contiguous",) * len(LARGE)
    mtadam = [StrictCase(dtype, LARGE, contiguous, contiguous, terms=3, seed=9, steps=2) for dtype in DTYPES]
    return [*mtadam, *(StrictCombinedCase.like(replace(case, terms=5)) for case in mtadam)]


# -- what single numbers show ------------------------------------------------------------------------------------------


def patterns(dtype: torch.dtype) -> Tensor:
    """Every number of a 16-bit type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


@cache
def hard_floats(dtype: torch.dtype) -> Tensor:
    """Every number of a 16-bit type, every tie between two of them, and the floats next to each."""
    ordered = patterns(dtype).double().sort().values[:-1]
    ordered = ordered[ordered.isfinite()]
    beyond = torch.tensor([3e38, -3e38, 1e-45, 1e-30, 65519.99, 65520.0, torch.inf, -torch.inf, torch.nan])
    exact = torch.cat([ordered.float(), ((ordered[1:] + ordered[:-1]) / 2).float(), beyond])
    infinity = torch.tensor(torch.inf)
    return torch.cat([exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity)])


def check_conversions(backend: str, dtype: torch.dtype) -> None:
    """16-bit numbers are read and rounded as torch reads and rounds them.

    With one term and no decay the combined gradient is the gradient, stored in the parameter's type. With a learning
    rate of 0 a parameter is read and stored again.
    """

    def step(param: Tensor, grad: Tensor) -> nn.Parameter:
        p = nn.Parameter(param.clone())
        if grad.dtype != dtype:
            p.grad_dtype = None
        optimizer = MTAdam([p], lr=0.0, keep_combined_grad=True, backend=backend)
        with optimizer.term(0):
            p.grad = grad
        optimizer.step()
        return p

    numbers = patterns(dtype)
    for grad in [numbers, *([hard_floats(dtype)] if hasattr(nn.Parameter, "grad_dtype") else [])]:
        combined, expected = step(torch.zeros(grad.shape, dtype=dtype), grad).grad, grad.to(dtype)
        assert combined is not None
        # As numbers, because adding to a sum of 0 loses the sign of zero.
        assert bool(((combined == expected) | (combined.isnan() & expected.isnan())).all())
    stored, finite = step(numbers, torch.zeros_like(numbers)).detach(), numbers.isfinite()
    assert torch.equal(stored[finite].view(torch.int16), numbers[finite].view(torch.int16))
    assert not stored[~finite].isfinite().any()


def check_threshold(backend: str) -> None:
    """A running norm of 1e-10 counts as zero, the next larger number does not."""
    for dtype in (torch.float64, torch.float32):
        tiny = torch.tensor(1e-10, dtype=dtype)
        above = torch.nextafter(tiny, torch.ones_like(tiny))
        for norm_init in ("first_step", "first_nonzero"):
            for first, anchor in ((tiny, 1.0), (above, above)):
                p = nn.Parameter(torch.ones(1, dtype=dtype))
                optimizer = MTAdam([p], norm_init=norm_init, backend=backend)
                for k, norm in enumerate((first, torch.ones_like(tiny))):
                    with optimizer.term(k):
                        p.grad = norm.reshape(1)
                optimizer.step()
                waits = norm_init == "first_nonzero" and first is tiny
                assert optimizer.term_norms()[0].isnan().item() == waits
                assert waits or optimizer.term_scales()[0].item() == 1.0
                assert optimizer.term_scales()[1].item() == anchor


def check_nan_is_largest(backend: str) -> None:
    """A NaN in a term's second moment or maximum stays, and reaches its element of the parameter, no other."""
    for amsgrad, buffer, term in ((a, b, k) for a in (False, True) for b in ("", "max_")[: a + 1] for k in range(3)):
        p = nn.Parameter(torch.ones(300))
        optimizer = MTAdam([p], amsgrad=amsgrad, backend=backend)
        for step in range(2):
            for k in range(3 - step):  # at the second step the last term is absent, and still bounds
                with optimizer.term(k):
                    p.grad = torch.full_like(p, k + 1.0)
            if step:
                optimizer.state[p][f"{buffer}exp_avg_sq{term}"][[7, 299]] = torch.nan
            optimizer.step()
        assert p.isnan().nonzero().flatten().tolist() == [7, 299]
        assert not amsgrad or optimizer.state[p][f"max_exp_avg_sq{term}"].isnan().sum() == 2
        assert optimizer.state[p]["exp_avg"].isfinite().all()


def check_bad_gradients(backend: str) -> None:
    """A gradient that is not finite spoils its own element, and no running norm."""
    for bad in (torch.inf, torch.nan):
        p = nn.Parameter(torch.ones(300))
        optimizer, norms = MTAdam([p], backend=backend), []
        for step in range(2):
            for k in range(2):
                with optimizer.term(k):
                    p.grad = torch.ones_like(p)
                    if step and k:
                        p.grad[7] = bad
            optimizer.step()
            norms.append(optimizer.term_norms()[1].item())
        assert norms[0] == norms[1]
        assert p.isnan().nonzero().flatten().tolist() == [7]


def check_single_numbers(backend: str) -> None:
    for dtype in NARROW:
        check_conversions(backend, dtype)
    if torch.set_flush_denormal(True):  # not of bfloat16, whose subnormal numbers are subnormal floats
        check_conversions(backend, torch.float16)
    torch.set_flush_denormal(False)
    check_threshold(backend)
    check_nan_is_largest(backend)
    check_bad_gradients(backend)


# -- buffers with an end that is seen ----------------------------------------------------------------------------------


def guarded(value: Tensor, place: str, short: int = 0) -> Tensor:
    """Copy ``value`` to memory beside a page that cannot be accessed.

    Args:
        place: whether the copy lies "before" the page or "after" it.
        short: so many of its last elements are in the page.
    """
    if value.device.type != "cpu" or not value.numel():
        return value
    size, page = value.numel() * value.element_size(), mmap.PAGESIZE
    usable = -(-size // page) * page
    memory = mmap.mmap(-1, usable + 2 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    offset = page if place == "after" else page + usable - size + short * value.element_size()
    copy = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=offset)
    used = value.numel() - short
    copy[:used] = value.detach().flatten()[:used]
    for guard in (copy.data_ptr() - offset, copy.data_ptr() - offset + page + usable):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0
    return copy.view(value.shape)


@contextmanager
def beside_guards(place: str) -> Iterator[None]:
    """Place parameters, gradients and what optimizers allocate for them beside guard pages."""

    def then_guarded(make: Callable[..., Tensor]) -> Any:
        return lambda like, *args, **options: guarded(make(like, *args, **options), place)

    with (
        mock.patch.object(cases, "laid_out", then_guarded(cases.laid_out)),
        mock.patch.object(torch, "zeros_like", then_guarded(torch.zeros_like)),
        mock.patch.object(torch, "empty_like", then_guarded(torch.empty_like)),
    ):
        yield


def check_placement(place: str) -> None:
    """See that ``beside_guards`` places all that a step reads or writes."""
    shape, layout = ((129,),), ("contiguous",)
    optimizer = StrictCase(torch.float32, shape, layout, layout, 1, 0, options={"amsgrad": True}).run("cpu")
    (p,) = optimizer.param_groups[0]["params"]
    assert p.grad is not None
    large = [value for value in optimizer.state[p].values() if value.shape == p.shape]
    for value in (p, p.grad, *large):
        assert (value.data_ptr() + (place == "before") * value.nbytes) % mmap.PAGESIZE == 0
    assert len(large) == 3


def short_of_one(value: Tensor, place: str) -> Tensor:
    """Copy ``value`` to memory that ends an element early: at a guard page, or an allocation of the heap."""
    if place == "guard":
        return guarded(value, "before", short=1)
    copy = value.detach().clone()
    copy.untyped_storage().resize_((copy.numel() - 1) * copy.element_size())
    return copy


def misaligned(value: Tensor) -> Tensor:
    """Copy ``value`` to an address that is not a multiple of an element's size."""
    memory = bytearray(value.numel() * value.element_size() + 1)
    return torch.frombuffer(memory, dtype=value.dtype, offset=1).copy_(value)


def step_with(buffer: str, changed: Callable[[Tensor], Tensor]) -> None:
    """Make a step that finds one of its buffers changed."""
    p = nn.Parameter(torch.ones(100))
    optimizer = MTAdam([p], amsgrad=True, keep_combined_grad=True, backend="cpu")
    empty_like = torch.empty_like  # makes the combined gradient
    for change in (torch.clone, changed):  # the first step makes the state
        if buffer in optimizer.state[p]:
            optimizer.state[p][buffer] = change(optimizer.state[p][buffer])
        if buffer == "param":
            p.data = change(p.detach())
        grad, of_combined = torch.ones(100), change if buffer == "combined" else torch.clone
        with optimizer.term(0):
            p.grad = change(grad) if buffer == "grad" else grad
        with mock.patch.object(torch, "empty_like", lambda *a, of=of_combined, **o: of(empty_like(*a, **o))):
            optimizer.step()


def ends_of_overruns(place: str) -> dict[str, int]:
    """Tell how a process ends (negative: by which signal) that makes a step with each buffer an element short."""
    changes = {buffer: lambda value: short_of_one(value, place) for buffer in BUFFERS}
    ends = {}
    step_with("none", torch.clone)  # imports what the first step imports
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # to write a core file for each takes longer than all the rest
    for buffer, change in [("none", torch.clone), *changes.items(), ("misaligned", misaligned)]:
        print(f"== {buffer}", file=sys.stderr, flush=True)
        child = os.fork()
        if not child:
            step_with("grad" if buffer == "misaligned" else buffer, change)
            os._exit(0)
        ends[buffer] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("== end", file=sys.stderr, flush=True)
    return ends


# -- running -----------------------------------------------------------------------------------------------------------


def digest(of_cases: list[Case], backend: str = "cpu") -> str:
    """Run cases, and hash all that their steps wrote."""
    found = hashlib.sha256()
    for case in of_cases:
        optimizer = case.run(backend)
        values = [table.scales for table in optimizer._tables._tables]
        values += [t.norms if t.per_term else t.gram for t in optimizer._tables._tables]
        for p in optimizer.param_groups[0]["params"]:
            values += [p.detach(), *optimizer.state.get(p, {}).values(), *([] if p.grad is None else [p.grad])]
        for value in values:
            found.update(torch.cat([value.flatten()]).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def digests_beside_guards() -> dict[str, str]:
    found = {}
    for place in ("before", "after"):
        with beside_guards(place):
            found[place] = digest(all_cases())
            check_placement(place)
    return found


def digests_of_threads(counts: list[int]) -> dict[str, str]:
    found = {}
    for count in counts:
        torch.set_num_threads(count)
        found[f"{count} threads"] = digest(large_cases())
    return found


def run_random_cases() -> None:
    import test_combined_adam
    import test_properties

    test_properties.test_any_case("cpu")
    test_combined_adam.test_any_case(backend="cpu")


def main() -> None:
    """Run what the first argument says, a JSON object, and print another."""
    wanted = json.loads(sys.argv[1])
    if "library" in wanted:
        from emulation import load

        native.module = load(Path(wanted["library"]))
    torch.set_num_threads(1)
    found: dict[str, Any] = {"isa": native.module.instruction_set(), "threading": native.module.threading()}
    if "overrun" in wanted:  # before there are threads, which a fork does without
        found |= ends_of_overruns(wanted["overrun"])
    if "all" in wanted:
        found["all"] = digest(all_cases())
        check_single_numbers("cpu")
    if "random" in wanted:
        run_random_cases()
    if "guards" in wanted:
        found |= digests_beside_guards()
    found |= digests_of_threads(wanted.get("threads", []))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
