"""Checks of single numbers: conversions of every 16-bit number, the threshold of the norms, infinities and NaN."""

from functools import cache
from itertools import product

import torch
from torch import Tensor, nn

from mtadam_fused import MTAdam

NARROW = (torch.bfloat16, torch.float16)


def patterns(dtype: torch.dtype) -> Tensor:
    """Return every number of a 16-bit type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


@cache
def hard_floats(dtype: torch.dtype) -> Tensor:
    """Return every number of a 16-bit type, every tie between two of them, and the floats next to each."""
    ordered = patterns(dtype).double().sort().values[:-1]
    ordered = ordered[ordered.isfinite()]
    beyond = torch.tensor([3e38, -3e38, 1e-45, 1e-30, 65519.99, 65520.0, torch.inf, -torch.inf, torch.nan])
    exact = torch.cat([ordered.float(), ((ordered[1:] + ordered[:-1]) / 2).float(), beyond])
    infinity = torch.tensor(torch.inf)
    return torch.cat([exact, torch.nextafter(exact, infinity), torch.nextafter(exact, -infinity)])


def check_conversions(backend: str, dtype: torch.dtype) -> None:
    """Check that 16-bit numbers are read and rounded as torch reads and rounds them.

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
    """Check that a running norm of 1e-10 counts as zero, and the next larger number does not."""
    for dtype in (torch.float64, torch.float32):
        tiny = torch.tensor(1e-10, dtype=dtype)
        above = torch.nextafter(tiny, torch.ones_like(tiny))
        for norm_init in ("first_step", "first_nonzero"):
            for rule, (first, anchor) in product(("first", 0), ((tiny, 1.0), (above, above))):
                p = nn.Parameter(torch.ones(1, dtype=dtype))
                optimizer = MTAdam([p], norm_init=norm_init, anchor=rule, backend=backend)
                for k, norm in enumerate((first, torch.ones_like(tiny))):
                    with optimizer.term(k):
                        p.grad = norm.reshape(1)
                optimizer.step()
                waits = norm_init == "first_nonzero" and first is tiny
                assert optimizer.running_norms()[0].isnan().item() == waits
                assert waits or optimizer.term_scales()[0].item() == 1.0
                assert optimizer.term_scales()[1].item() == anchor


def check_nan_is_largest(backend: str) -> None:
    """Check that a NaN in a second moment or a maximum stays, and reaches its element of the parameter, no other."""
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
    """Check that a gradient that is not finite spoils its own element, and no running norm."""
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
            norms.append(optimizer.running_norms()[1].item())
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
