"""The gradients of each loss term, taken from ``p.grad`` and kept apart until the step."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import is_

import torch
from torch import Tensor

from .averaging import Averaging
from .hyperparameters import Term
from .reference import arithmetic_type
from .shards import described as how_spread
from .shards import over_same_processes, parts, placed_as, whole
from .table import TermGradients, dense_like


class PendingGradients:
    """Gradients captured since the last step: for each term, one entry per parameter of the optimizer.

    ``losses`` has the values of the terms' losses, as far as they were told; like gradients they add up.

    Args:
        averaging: averages the gradients over processes, from when they are added until they are wanted.
    """

    def __init__(self, averaging: Averaging) -> None:
        self._averaging = averaging
        self._by_term: dict[int, list[Tensor | None]] = {}
        self._params: list[Tensor] = []
        self.losses: dict[int, Tensor] = {}

    def __bool__(self) -> bool:
        return any(grad is not None for row in self._by_term.values() for grad in row)

    def clear(self) -> None:
        """Drops all gradients."""
        self._averaging.forget()
        self._by_term.clear()
        self._params = []
        self.losses.clear()

    def add(self, term: int, params: list[Tensor], grads: list[Tensor | None], loss: Tensor | None = None) -> None:
        """Makes ``grads`` (one entry for each of ``params``) the term's, or adds them to what the term has already."""
        self._check_params(params)
        self._params = params
        if loss is not None:
            value = whole(loss.detach()).reshape(())
            self.losses[term] = self.losses[term] + value if term in self.losses else value
        if (held := self._by_term.get(term)) is not None:
            self._wait()
            grads = added(held, grads)
        with self._all_or_none():
            self._averaging.start(grads)  # of those held too: averages of averages are the same
        self._by_term[term] = grads

    def tensors(self) -> list[Tensor]:
        """All gradients and losses, to be changed in place."""
        self._wait()
        # Until now in the user's memory, and of this process: all must find the same ones finite.
        self.losses = {term: self._averaging.averaged(loss) for term, loss in self.losses.items()}
        grads = [grad for row in self._by_term.values() for grad in row if grad is not None]
        return [*grads, *self.losses.values(), *self._of_other_parts(grads)]

    def _of_other_parts(self, grads: list[Tensor]) -> list[Tensor]:
        """Where other processes have other parts of the gradients: a scalar that is finite if all parts are."""
        if not (grads and self._averaging.has_parts):
            return []
        finite = torch.stack([is_finite(grad).to(grads[0].device) for grad in grads]).all()
        return [torch.where(self._averaging.all_have(finite), 0.0, math.inf)]

    def of(self, terms: int, params: Sequence[Tensor]) -> TermGradients:
        """``[terms][params]`` gradients, None where absent.

        Raises:
            RuntimeError: the first of ``params`` are not those that the gradients were taken of.
        """
        self._check_params(params)
        self._wait()
        none: list[Tensor | None] = [None] * len(params)
        rows = [self._by_term.get(k, none) for k in range(terms)]
        return [row + none[len(row) :] for row in rows]

    def _wait(self) -> None:
        """For averages that are under way."""
        if self._averaging:
            with self._all_or_none():
                self._averaging.wait()

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Drops all gradients if the body fails: some may be no averages."""
        try:
            yield
        except BaseException:
            self.clear()
            raise

    def _check_params(self, params: Sequence[Tensor]) -> None:
        """Gradients are known by their parameters' positions."""
        if len(self._params) > len(params) or not all(map(is_, self._params, params)):
            raise RuntimeError(
                "parameters have left the optimizer, or were exchanged, since backward() took their gradients; call "
                "zero_grad(), then backward() again"
            )


def added(held: list[Tensor | None], grads: list[Tensor | None]) -> list[Tensor | None]:
    """The sums of two gradients of each parameter, in the memory of ``held`` where that has one."""
    held = held + [None] * (len(grads) - len(held))  # parameters added since
    both = [(h, g) for h, g in zip(held, grads, strict=True) if h is not None and g is not None]
    if both:
        torch._foreach_add_([h for h, _ in both], [g for _, g in both])
    return [g if h is None else h for h, g in zip(held, grads, strict=True)]


def take_gradients(params: Sequence[Tensor], term: Term, *, spread: bool = False) -> list[Tensor | None]:
    """Moves the gradients out of ``p.grad``: afterwards it is None for all of ``params``.

    With ``spread``, for gradients that are spread over processes it gives the parts in this one. A gradient is copied
    only where it lacks the parameter's memory layout or, being of another type, the parameter's arithmetic type.

    Raises:
        RuntimeError: a gradient that is sparse, complex, or of another shape or device than its parameter.
    """
    grads = [p.grad for p in params]
    for p in params:
        p.grad = None
    if spread:
        grads, params = parts_of_gradients(grads, params, term), parts(params)
    for i, (grad, p) in enumerate(zip(grads, params, strict=True)):
        if grad is None:
            continue
        if grad.dtype != p.dtype or grad.device != p.device or grad.layout != torch.strided or grad.shape != p.shape:
            check_gradient(grad, p, i, term)
            grads[i] = dense_like(p, grad, arithmetic_type(p.dtype))
        elif grad.is_neg() or not in_same_order(grad, p):
            grads[i] = dense_like(p, grad, p.dtype)
    return grads


def parts_of_gradients(grads: Sequence[Tensor | None], params: Sequence[Tensor], term: Term) -> list[Tensor | None]:
    """Those parts of ``grads`` that are in this process as the same parts of ``params`` are.

    Raises:
        RuntimeError: a gradient and its parameter are not spread over the same processes.
    """
    placed = list(grads)
    for i, (grad, p) in enumerate(zip(grads, params, strict=True)):
        if grad is None:
            continue
        if not over_same_processes(grad, p):
            raise RuntimeError(
                f"the gradient of term {term!r} for parameter {i} is {how_spread(grad)}, the parameter "
                f"{how_spread(p)}; make the gradient as the parameter is"
            )
        placed[i] = placed_as(p, grad)  # a sum that is yet to be made becomes one
    return parts(placed)


def fit_gradients(grads: TermGradients, params: Sequence[Tensor]) -> None:
    """Gives waiting gradients ([K][parameters]) the memory layout of parameters that have changed since.

    Raises:
        RuntimeError: parameters that have changed in more than that; nothing has changed.
    """
    for row in grads:
        for i, (grad, p) in enumerate(zip(row, params, strict=True)):
            if grad is None:
                continue
            fits = grad.shape == p.shape and grad.device == p.device
            if not fits or grad.dtype not in (p.dtype, arithmetic_type(p.dtype)):
                raise RuntimeError(
                    f"parameter {i} has become {described(p)} since its gradient was taken, which is "
                    f"{described(grad)}; call zero_grad(), then backward() again"
                )
            row[i] = dense_like(p, grad, grad.dtype)


def described(tensor: Tensor) -> str:
    """Its type, shape and device."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"


def in_same_order(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape are seen at once to be dense, their elements in the same order in memory."""
    if a.is_contiguous() and b.is_contiguous():
        return True
    channels_last = torch.channels_last
    return (
        a.dim() == 4 and a.is_contiguous(memory_format=channels_last) and b.is_contiguous(memory_format=channels_last)
    )


def check_gradient(grad: Tensor, param: Tensor, position: int, term: Term) -> None:
    """Raises RuntimeError for a gradient that no step can use."""
    what = f"the gradient of term {term!r} for parameter {position}"
    if grad.layout != torch.strided:
        raise RuntimeError(f"{what} is {grad.layout}; MTAdam needs dense gradients: use nn.Embedding(sparse=False)")
    if not grad.is_floating_point():
        raise RuntimeError(
            f"{what} is {grad.dtype}; MTAdam needs real floating-point gradients: use torch.view_as_real"
        )
    if grad.shape != param.shape:
        raise RuntimeError(
            f"{what} has shape {tuple(grad.shape)}, the parameter {tuple(param.shape)}; they must be equal"
        )
    if grad.device != param.device:
        raise RuntimeError(f"{what} is on {grad.device}, the parameter on {param.device}; move one of them")


def is_finite(values: Tensor) -> Tensor:
    """Whether all of them are, as a scalar tensor."""
    largest = torch.linalg.vector_norm(values, math.inf) if values.numel() else values.new_zeros(())
    return largest.isfinite()


def check_finite(grads: TermGradients, terms: Sequence[Term], averaging: Averaging) -> None:
    """Raises RuntimeError if a gradient has an element that is not finite, here or in another process.

    Waits once for each device.
    """
    by_device: dict[torch.device, list[tuple[Term, int, Tensor]]] = {}
    for term, row in zip(terms, grads, strict=True):
        for i, grad in enumerate(row):
            if grad is not None:
                by_device.setdefault(grad.device, []).append((term, i, is_finite(grad)))
    for found in by_device.values():
        finite = averaging.all_have(torch.stack([finite for _, _, finite in found]))
        for (term, i, _), good in zip(found, finite.tolist(), strict=True):
            if not good:
                raise RuntimeError(
                    f"the gradient of term {term!r} for parameter {i} is not finite; the step is refused and nothing "
                    "has changed: call zero_grad() to drop the gradients, and look at the loss"
                )
