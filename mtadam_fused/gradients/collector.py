"""The gradients of each loss term, taken out of ``p.grad`` and kept apart until the step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_

import torch
from torch import Tensor

from ..distributed.communicator import Communicator
from ..distributed.dtensor import describe_placement, full_tensor, is_dtensor, redistribute_like, same_mesh, to_locals
from ..distributed.dtensor import version as tensor_version
from ..hyperparameters import Term
from ..reference import arithmetic_type
from ..tables.layout import TermGradients, dense_like, device_of, memory_of, same_strides


class GradientCollector:
    """Take the gradients of one term after the other out of ``p.grad``, and keep them until the step.

    Between terms ``p.grad`` is None, or the combined gradient that the last step has left there. Anything else is an
    error: nothing tells which term it belongs to.

    Attributes:
        weights: [K] of the step's rule, once it has been asked.
        is_sum: whether what waits is the terms' weighted sum, in the place of the first term's.
        clip_factor: by which the step is to multiply the combined gradient, None for 1.
        grad_scale: what a GradScaler has multiplied losses and gradients by, a float32 scalar; None if nothing, or if
            it has unscaled them.
        found_inf: a float32 scalar, not 0 if a GradScaler has found a gradient that is not finite; None without one.

    Args:
        communicator: averages the gradients over processes, from when they are taken until they are needed.
    """

    def __init__(self, communicator: Communicator) -> None:
        self._went_to_scaler = False  # whether a GradScaler has what waits: it has unscaled it, or skips the step
        self._addresses: set[int] = set()  # of gradients that may share memory
        self._losses: dict[int, Tensor] = {}
        self._loss_factor: Tensor | None = None  # by which GradScaler has unscaled
        self.weights: Tensor | None = None
        self.is_sum = False
        self.clip_factor: Tensor | None = None
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None
        self._communicator = communicator
        self._by_term: dict[int, list[Tensor | None]] = {}
        self._memory: dict[int, object] = {}  # of the parameters that a term's gradients fit; None for none
        self._params: list[Tensor] = []  # that the gradients are of
        self._open_term: tuple[Term] | None = None
        self._combined: list[tuple[Tensor, Tensor, object]] = []  # parameters, what the last step left there, versions

    def __bool__(self) -> bool:
        """Return whether any gradient waits for the step."""
        return any(grad is not None for row in self._by_term.values() for grad in row)

    def clear(self) -> None:
        """Drop all waiting gradients and losses."""
        self._communicator.abandon()
        self._went_to_scaler = False
        self._addresses.clear()
        self._by_term.clear()
        self._memory.clear()
        self._params = []
        self._losses.clear()
        self._loss_factor = None
        self.weights = None
        self.is_sum = False
        self.clip_factor = None
        self.grad_scale = None
        self.found_inf = None

    # -- p.grad --------------------------------------------------------------------------------------------------------

    @contextmanager
    def open_term(self, term: Term) -> Iterator[None]:
        """Let the gradients that the body leaves in ``p.grad`` be those of ``term``; no other term may open."""
        opened = self._open_term = (term,)
        try:
            yield
        finally:
            if self._open_term is opened:  # an abandoned block may end when another term has opened
                self.close_term()

    def close_term(self) -> None:
        """Allow another term to open."""
        self._open_term = None

    def free_grads(self, params: Sequence[Tensor], names: Callable[[], Sequence[str]]) -> None:
        """Make ``p.grad`` None: drop what the last step has left there, and refuse anything else.

        Also drop what waits from a step that a GradScaler has skipped: scaled gradients cannot be added to it.

        Args:
            params: all parameters of the optimizer.
            names: returns those of the parameters, or nothing, for the error message.

        Raises:
            RuntimeError: another term is open, or a gradient belongs to no term.
        """
        self.refuse_open_term()
        self.refuse_unowned_grads(params, names)
        if self._went_to_scaler:
            self.clear()
        for p, grad, _ in self._combined:
            if p.grad is grad:
                p.grad = None
        self._combined = []

    def refuse_open_term(self) -> None:
        """Raise RuntimeError inside the block of a term."""
        if self._open_term is not None:
            raise RuntimeError(
                f"term {self._open_term[0]!r} is being taken; leave its `with optimizer.term(...)` block first (if an "
                "interrupt has left it open, zero_grad() closes it)"
            )

    def refuse_unowned_grads(self, params: Sequence[Tensor], names: Callable[[], Sequence[str]]) -> None:
        """Raise RuntimeError if ``p.grad`` holds anything but what the last step has left there.

        Arguments as in :meth:`free_grads`.
        """
        for i in self._unowned_grads(params):
            known = names()
            name = f" ({known[i]})" if known else ""
            raise RuntimeError(
                f"parameter {i}{name} has a gradient in .grad that belongs to no term. Call "
                "optimizer.backward({...}) instead of loss.backward(), or make that gradient inside "
                "`with optimizer.term(name):`; zero_grad() drops it"
            )

    def has_unowned_grads(self, params: Sequence[Tensor]) -> bool:
        """Return whether ``p.grad`` of any of ``params`` holds anything but what the last step has left there."""
        return any(True for _ in self._unowned_grads(params))

    def _unowned_grads(self, params: Sequence[Tensor]) -> Iterator[int]:
        owned = {id(grad): version for _, grad, version in self._combined}
        for i, p in enumerate(params):
            if p.grad is not None and owned.get(id(p.grad)) != tensor_version(p.grad):
                yield i

    def take(
        self, position: int, term: Term, params: list[Tensor], loss: Tensor | None, *, may_share: bool = False
    ) -> None:
        """Move the gradients in ``p.grad`` to those that wait for the step, as those of the term at ``position``.

        Adds to the gradients that the term has already.

        Args:
            may_share: whether gradients may have the same memory, as torch.autograd.grad gives it to those of a sum.

        Raises:
            RuntimeError: a gradient that no step can use, no gradient of any sharded parameter, or other processes have
                another term. The gradients in ``p.grad`` are gone; those of other terms still wait.
        """
        sharded = self._communicator.has_shards
        grads = take_gradients(params, term, sharded=sharded)
        if may_share:
            self._copy_shared(grads)
        if sharded:
            check_reduced(params, grads, term)
        self._communicator.check_same_term(term, grads, device_of(params))
        self._check_params(params)
        self._params = params
        if loss is not None:
            value = full_tensor(loss.detach()).reshape(())
            held_loss = self._losses.get(position)
            self._losses[position] = value if held_loss is None else held_loss + value
        if (held := self._by_term.get(position)) is not None:
            self._wait()
            grads = accumulate(held, grads)
        with self._all_or_none():
            self._communicator.all_reduce_mean_async(grads)  # of those held too: averages of averages are the same
        memory = memory_of(to_locals(params) if sharded else params)
        self._memory[position] = memory if held is None or self._memory[position] == memory else None
        self._by_term[position] = grads

    def _copy_shared(self, grads: list[Tensor | None]) -> None:
        """Copy gradients in memory that another one has: what waits is changed in place."""
        for i, grad in enumerate(grads):
            if grad is not None and (address := grad.data_ptr()):
                if address in self._addresses:
                    grads[i] = grad.clone()
                self._addresses.add(address)

    def leave_combined(self, param: Tensor, grad: Tensor) -> None:
        """Put the combined gradient of a step in ``param.grad``, where it may stay until the next term."""
        param.grad = grad
        self._combined.append((param, param.grad, tensor_version(param.grad)))

    def forget_combined(self) -> None:
        """Treat what a step has left in ``p.grad`` as any other gradient."""
        self._combined = []

    # -- waiting gradients ---------------------------------------------------------------------------------------------

    def rows(self, terms: int, params: Sequence[Tensor]) -> TermGradients:
        """Return ``[terms][params]`` gradients, None where absent.

        Raises:
            RuntimeError: the first of ``params`` are not those that the gradients were taken of.
        """
        self._check_params(params)
        self._wait()
        absent: list[Tensor | None] = [None] * len(params)
        rows = [self._by_term.get(k, absent) for k in range(terms)]
        return [row + absent[len(row) :] for row in rows]

    def fitted_memory(self) -> list[object]:
        """Return for each term what ``memory_of`` the parameters was when they fitted its gradients."""
        return list(self._memory.values())

    @property
    def losses(self) -> dict[int, Tensor]:
        """The value of each term's loss, by the term's position, where it is known. Losses add up like gradients."""
        losses = dict(self._losses)
        if self._loss_factor is not None:
            losses = {k: loss * self._loss_factor.to(loss.device, loss.dtype) for k, loss in losses.items()}
        if self.grad_scale is not None:
            losses = {k: loss / self.grad_scale.to(loss.device, loss.dtype) for k, loss in losses.items()}
        return losses

    def unscale_targets(self, *, losses: bool) -> list[Tensor]:
        """Return all gradients, which GradScaler unscales in place.

        Args:
            losses: whether the losses are to be unscaled too, at the next use.
        """
        self._wait()
        self._went_to_scaler = True
        grads = [grad for row in self._by_term.values() for grad in row if grad is not None]
        targets = [*grads, *self._finite_in_all_shards(grads)]
        if losses and self._losses and self._loss_factor is None:
            # A loss may overflow where its gradient does not, so GradScaler sees a 1 in the place of the losses. It
            # looks once. Later it is no target: clipping must not find it.
            self._loss_factor = torch.ones((), device=next(iter(self._losses.values())).device)
            targets.append(self._loss_factor)
        return targets

    def _finite_in_all_shards(self, grads: list[Tensor]) -> list[Tensor]:
        """Return a scalar that is finite if all shards of the gradients are; none where nothing is sharded."""
        if not (grads and self._communicator.has_shards):
            return []
        finite = torch.stack([is_finite(grad).to(grads[0].device) for grad in grads]).all()
        return [torch.where(self._communicator.all_ranks_true(finite), 0.0, math.inf)]

    def scale_(self, position: int, factor: Tensor) -> None:
        """Multiply the gradients of the term at ``position`` by a scalar, in place."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for grad in self._by_term.get(position, ()):
            if grad is not None:
                by_device.setdefault(grad.device, []).append(grad)
        for device, grads in by_device.items():
            torch._foreach_mul_(grads, factor.to(device))

    def check_finite(self, grads: TermGradients, terms: Sequence[Term]) -> None:
        """Raise RuntimeError if a gradient has an element that is not finite, here or in another process.

        Waits once for each device.
        """
        by_device: dict[torch.device, list[tuple[Term, int, Tensor]]] = {}
        for term, row in zip(terms, grads, strict=True):
            for i, grad in enumerate(row):
                if grad is not None:
                    by_device.setdefault(grad.device, []).append((term, i, is_finite(grad)))
        for found in by_device.values():
            finite = self._communicator.all_ranks_true(torch.stack([finite for _, _, finite in found]))
            for (term, i, _), good in zip(found, finite.tolist(), strict=True):
                if not good:
                    raise RuntimeError(
                        f"the gradient of term {term!r} for parameter {i} is not finite; the step is refused and "
                        "nothing has changed: call zero_grad() to drop the gradients, and look at the loss"
                    )

    def _wait(self) -> None:
        """Wait for averages that are in flight."""
        if self._communicator:
            with self._all_or_none():
                self._communicator.wait()

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Drop all gradients if the body fails: some may not be averages."""
        try:
            yield
        except BaseException:
            self.clear()
            raise

    def _check_params(self, params: Sequence[Tensor]) -> None:
        """Raise RuntimeError unless ``params`` still begin with those that gradients were taken of."""
        if len(self._params) > len(params) or not all(map(is_, self._params, params)):
            raise RuntimeError(
                "parameters have left the optimizer, or were exchanged, since backward() took their gradients; call "
                "zero_grad(), then backward() again"
            )


def accumulate(held: list[Tensor | None], grads: list[Tensor | None]) -> list[Tensor | None]:
    """Return the sums of two gradients of each parameter, in the memory of ``held`` where that has one."""
    held = held + [None] * (len(grads) - len(held))  # parameters added since
    both = [(h, g) for h, g in zip(held, grads, strict=True) if h is not None and g is not None]
    if both:
        torch._foreach_add_([h for h, _ in both], [g for _, g in both])
    return [g if h is None else h for h, g in zip(held, grads, strict=True)]


def take_gradients(params: Sequence[Tensor], term: Term, *, sharded: bool = False) -> list[Tensor | None]:
    """Move the gradients out of ``p.grad``, which is None for all of ``params`` afterwards.

    Copies a gradient only where it lacks the parameter's strides or, having another dtype, the arithmetic dtype.

    Args:
        term: its name, for error messages.
        sharded: whether any parameter is a DTensor; then returns local tensors.

    Raises:
        RuntimeError: a gradient that is sparse, complex, or of another shape or device than its parameter.
    """
    grads = [p.grad for p in params]
    for p in params:
        p.grad = None
    if sharded:
        grads, params = local_gradients(grads, params, term), to_locals(params)
    fit_to_params(grads, params, term)
    return grads


def fit_to_params(grads: list[Tensor | None], params: Sequence[Tensor], term: Term) -> None:
    """Give gradients the strides of their parameters, and where they have another dtype the arithmetic one.

    Replaces entries of ``grads``; errors as in :func:`take_gradients`.
    """
    for i, (grad, p) in enumerate(zip(grads, params, strict=True)):
        if grad is None:
            continue
        if grad.dtype != p.dtype or grad.device != p.device or grad.layout != torch.strided or grad.shape != p.shape:
            check_gradient(grad, p, i, term)
            grads[i] = dense_like(p, grad, arithmetic_type(p.dtype))
        elif grad.is_neg() or not same_strides(grad, p):
            grads[i] = dense_like(p, grad, p.dtype)


def local_gradients(grads: Sequence[Tensor | None], params: Sequence[Tensor], term: Term) -> list[Tensor | None]:
    """Return the local tensors of ``grads``, placed as ``params`` are.

    Raises:
        RuntimeError: a gradient and its parameter are on different meshes.
    """
    placed = list(grads)
    for i, (grad, p) in enumerate(zip(grads, params, strict=True)):
        if grad is None:
            continue
        if not same_mesh(grad, p):
            raise RuntimeError(
                f"the gradient of term {term!r} for parameter {i} is {describe_placement(grad)}, the parameter is "
                f"{describe_placement(p)}; place the gradient as the parameter is"
            )
        placed[i] = redistribute_like(p, grad)  # which also makes a pending sum
    return to_locals(placed)


def check_gradient(grad: Tensor, param: Tensor, position: int, term: Term) -> None:
    """Raise RuntimeError for a gradient that no step can use."""
    what = f"the gradient of term {term!r} for parameter {position}"
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"{what} is {grad.layout}; the optimizer needs dense gradients: use nn.Embedding(sparse=False)"
        )
    if not grad.is_floating_point():
        raise RuntimeError(
            f"{what} is {grad.dtype}; the optimizer needs real floating-point gradients: use torch.view_as_real"
        )
    if grad.shape != param.shape:
        raise RuntimeError(
            f"{what} has shape {tuple(grad.shape)}, the parameter {tuple(param.shape)}; they must be equal"
        )
    if grad.device != param.device:
        raise RuntimeError(f"{what} is on {grad.device}, the parameter on {param.device}; move one of them")


def check_inputs(inputs: Iterable[Tensor]) -> None:
    """Raise RuntimeError if a backward pass has left no gradient for any DTensor among ``inputs``."""
    sharded = [tensor for tensor in inputs if is_dtensor(tensor)]
    if sharded and all(tensor.grad is None for tensor in sharded):
        raise RuntimeError(
            "the backward pass has made no gradient for the sharded parameters among inputs: FSDP2 cannot be told its "
            "inputs; leave inputs out"
        )


def check_reduced(params: Sequence[Tensor], grads: Sequence[Tensor | None], term: Term) -> None:
    """Raise RuntimeError if a backward pass has left no gradient of any DTensor."""
    if all(grad is None for p, grad in zip(params, grads, strict=True) if is_dtensor(p)):
        raise RuntimeError(
            f"term {term!r} has left no gradient for any sharded parameter, and what FSDP2 has not reduced would be "
            "taken for the next term's: keep set_requires_gradient_sync and set_requires_all_reduce at True; give "
            "a term that is only for other parameters to an optimizer of their own"
        )


def is_finite(values: Tensor) -> Tensor:
    """Return whether all elements are finite, as a scalar tensor."""
    largest = torch.linalg.vector_norm(values, math.inf) if values.numel() else values.new_zeros(())
    return largest.isfinite()
