"""What optimizers of several loss terms share: the terms, their gradients, and the errors of their misuse."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .averaging import Averaging
from .hyperparameters import Hyperparameters, Term
from .losses import Losses, check_loss, check_term, named_losses
from .shards import described as how_spread
from .shards import is_partial, is_spread, version
from .table import STORAGE_TYPES
from .term_gradients import PendingGradients, take_gradients


class TermOptimizer(Optimizer):
    """Base of the optimizers that take the gradient of each loss term apart.

    The names of the terms stand, in the order in which they were first seen, in every parameter group under
    ``"terms"``, so that checkpoints hold them.
    """

    hyperparameters: ClassVar[type[Hyperparameters]]  # of a parameter group

    def __init__(self, params: Any, defaults: dict[str, Any], process_group: Any) -> None:
        self._averaging = Averaging(process_group)
        super().__init__(params, defaults)
        self._reset()

    def _reset(self) -> None:
        """Forgets the waiting gradients."""
        self._averaging.join(self._params())
        self._pending = PendingGradients(self._averaging)
        self._open_term: Term | None = None
        self._combined: list[tuple[Tensor, Tensor, object]] = []  # what the last step left in p.grad, its version

    # -- terms ---------------------------------------------------------------------------------------------------------

    @property
    def terms(self) -> tuple[Term, ...]:
        """Names of the loss terms in the order in which they were first seen, or positions for losses in a list."""
        return self.param_groups[0]["terms"]

    def _set_terms(self, terms: Iterable[Term]) -> None:
        for group in self.param_groups:
            group["terms"] = tuple(terms)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group; its entries override the defaults, as in torch.optim.

        Raises:
            ValueError: a hyper-parameter out of its range; nothing has been added.
            TypeError: parameters that are not real, dense and floating-point, none, or a set of them.
        """
        if isinstance(param_group, Mapping):
            self.hyperparameters.of({**self.defaults, **param_group})
            params = param_group.get("params")
            if params is None or isinstance(params, set):
                kind = "no 'params'" if params is None else "a set as its 'params', which has no order"
                raise TypeError(f"the parameter group {list(param_group)} has {kind}; give it a list of parameters")
            param_group = {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}
            for i, param in enumerate(param_group["params"]):
                param = param[1] if isinstance(param, tuple) else param
                check_param(i, param)
                self._averaging.check_param(i, param)
        super().add_param_group(param_group)
        self._averaging.join(self._params())
        self._set_terms(self.terms if len(self.param_groups) > 1 else self.param_groups[0].get("terms", ()))

    # -- gradients -----------------------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def backward(
        self, losses: Losses, *, retain_graph: bool = False, inputs: Tensor | Iterable[Tensor] | None = None
    ) -> None:
        """Differentiates each loss term apart, one backward pass per term.

        Afterwards the gradients wait in the optimizer for :meth:`step`; ``p.grad`` is None. Called again before
        ``step()`` it adds to them (gradient accumulation).

        Args:
            losses: scalar losses, as a mapping from the terms' names or as a sequence. A term that is left out of a
                mapping is absent from the step: its running norms and second moments stay as they are.
            retain_graph: keep the graph after the last term too.
            inputs: differentiate with respect to these tensors only (as in torch.autograd.backward).

        Raises:
            TypeError, ValueError: bad ``losses``; nothing has changed.
            RuntimeError: from autograd, from the ``process_group``, or a gradient that no step can use. All waiting
                gradients are then dropped, as by :meth:`zero_grad`.
        """
        if inputs is not None:
            inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)  # for each term anew
        named = named_losses(losses, self.terms, need_finite=not self._averaging)
        terms = self._with_terms(named, so_far=False)
        self._clear_grads()
        known = self.terms
        try:
            for number, (term, loss) in enumerate(named.items(), start=1):
                torch.autograd.backward(loss, retain_graph=retain_graph or number < len(named), inputs=inputs)
                check_inputs(inputs or ())
                self._take(terms.index(term), term, loss)
        except BaseException:
            self.zero_grad()
            self._set_terms(known)
            raise
        self._set_terms(terms)

    @torch._disable_dynamo
    @contextmanager
    def term(self, term: Term, loss: Tensor | None = None) -> Iterator[None]:
        """Takes the gradients that the body leaves in ``p.grad`` as those of one term, whatever engine made them.

        At exit they are moved out of ``p.grad``, without a copy, to wait for :meth:`step`. Entering the same term again
        before ``step()`` adds to them (gradient accumulation). If the body raises, its gradients are dropped.

        Args:
            term: the term's name; or its position, for terms given by position or to name a known term.
            loss: the value that the gradients are of, a scalar, for rules that look at the losses (see
                :class:`mtadam_fused.CombinedAdam`).

        Raises:
            ValueError: a position that is neither a known term nor the next new one; a ``loss`` that is no scalar.
            RuntimeError: inside another term, gradients in ``p.grad`` at entry, a gradient that no step can use, or an
                error of the ``process_group``.
        """
        name = self._name_of(term)
        if loss is not None:
            check_loss(name, loss, need_graph=False, need_finite=not self._averaging)
        terms = self._with_terms([name], so_far=True)
        self._clear_grads()
        self._open_term = name
        try:
            yield
            self._take(terms.index(name), name, loss)
            self._set_terms(terms)
        except BaseException:
            super().zero_grad(set_to_none=True)
            raise
        finally:
            self._open_term = None

    @torch._disable_dynamo  # what leaves a term() block alone runs what follows the block's yield
    def _take(self, position: int, term: Term, loss: Tensor | None) -> None:
        """Moves what is in ``p.grad`` to the term's waiting gradients."""
        params = self._params()
        grads = take_gradients(params, term, spread=self._averaging.has_parts)
        if self._averaging.has_parts:
            check_reduced(params, grads, term)
        self._averaging.check(term, grads, params[0].device)
        self._pending.add(position, params, grads, loss)

    def _name_of(self, term: Term) -> Term:
        """The name behind what :meth:`term` was given."""
        if not isinstance(term, int) or term in self.terms:
            return term
        by_position = all(isinstance(name, int) for name in self.terms)
        if 0 <= term < len(self.terms):
            return self.terms[term]
        if by_position and term == len(self.terms):
            return term
        raise ValueError(
            f"unknown term {term!r}: the terms so far are {list(self.terms)}"
            + (f"; the next new position is {len(self.terms)}" if by_position else "; new terms need names")
        )

    def _with_terms(self, names: Iterable[Term], *, so_far: bool) -> list[Term]:
        """The terms with the new ones among ``names`` appended; checks that the optimizer can take them."""
        terms = list(dict.fromkeys(chain(self.terms, names)))
        for term in terms[len(self.terms) :]:
            check_term(term)
        self._check_terms(terms, so_far=so_far)
        return terms

    def _check_terms(self, terms: Sequence[Term], *, so_far: bool) -> None:
        """Raises ValueError for terms that the optimizer has no weights for.

        Args:
            so_far: more terms may follow.
        """

    def _clear_grads(self) -> None:
        """Makes ``p.grad`` None for a term to come: drops what the last step left there, refuses anything else."""
        if self._open_term is not None:
            raise RuntimeError(
                f"term {self._open_term!r} is being taken; leave its `with optimizer.term(...)` block first"
            )
        self._refuse_grads_of_no_term()
        for p, left, _ in self._combined:
            if p.grad is left:
                p.grad = None
        self._combined = []

    def _refuse_grads_of_no_term(self) -> None:
        """Raises RuntimeError if there is anything in ``p.grad`` but what the last step left."""
        left = {id(grad): version for _, grad, version in self._combined}
        for i, p in enumerate(self._params()):
            if p.grad is not None and left.get(id(p.grad)) != version(p.grad):
                raise RuntimeError(
                    f"parameter {i} has a gradient in .grad that belongs to no term; call zero_grad() first, or make "
                    "that gradient inside `with optimizer.term(name):`"
                    + ("" if self.state else "; if get_state_dict() made it: let the optimizer make a step before")
                )

    @torch._disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients of all terms and sets ``p.grad`` to None, whatever ``set_to_none`` is."""
        self._pending.clear()
        self._combined = []
        super().zero_grad(set_to_none=True)


def check_inputs(inputs: Iterable[Tensor]) -> None:
    """Raises RuntimeError if a backward pass has made no gradient for any of ``inputs`` that is spread."""
    spread = [tensor for tensor in inputs if is_spread(tensor)]
    if spread and all(tensor.grad is None for tensor in spread):
        raise RuntimeError(
            "the backward pass has made no gradient for the sharded parameters among inputs: FSDP2 cannot be told its "
            "inputs; leave inputs out"
        )


def check_reduced(params: Sequence[Tensor], grads: Sequence[Tensor | None], term: Term) -> None:
    """Raises RuntimeError if a backward pass has made no gradient of any parameter that is spread."""
    if all(grad is None for p, grad in zip(params, grads, strict=True) if is_spread(p)):
        raise RuntimeError(
            f"term {term!r} has left no gradient for any sharded parameter, and what FSDP2 has not reduced would be "
            "taken for the next term's: keep set_requires_gradient_sync and set_requires_all_reduce at True; give "
            "a term that is only for other parameters to an optimizer of their own"
        )


def check_param(position: int, param: Any) -> None:
    """Raises TypeError for a parameter that the kernels cannot update."""
    if not isinstance(param, Tensor):
        raise TypeError(
            f"params[{position}] is a {type(param).__name__}; it must be a Tensor, as from model.parameters()"
        )
    if param.dtype not in STORAGE_TYPES or param.layout != torch.strided:
        supported = ", ".join(str(dtype) for dtype in STORAGE_TYPES)
        raise TypeError(f"params[{position}] is {param.dtype}, {param.layout}; it must be dense and one of {supported}")
    if is_partial(param):
        raise TypeError(f"params[{position}] is {how_spread(param)}; give its sum: redistribute it first")
