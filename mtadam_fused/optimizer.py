"""The base class of MTAdam and CombinedAdam."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import compress
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .backends import Backend
from .backends.registry import add_backends
from .distributed.communicator import Communicator
from .distributed.dtensor import dtensor_like
from .gradients.collector import GradientCollector, check_inputs
from .gradients.compiled import explain_donated_buffers
from .gradients.grad_scaler import GradScalerView, refuse_grad_scaler
from .gradients.losses import Losses, check_loss, named_losses, sum_losses
from .gradients.terms import add_terms, check_terms, find_term
from .hyperparameters import Hyperparameters, Term
from .misuse_watch import MisuseWatch
from .tables.cache import ParamTableCache
from .tables.checkpoint import asks_for_state, read_state_dict
from .tables.layout import StateLayout, TermGradients
from .tables.param_table import check_param
from .tables.step_args import StepArgs
from .telemetry import unique_names

# Options that a parameter group cannot override.
OF_THE_WHOLE = {
    "backend",
    "check_finite",
    "keep_combined_grad",
    "passes",
    "process_group",
    "second_moments",
}
OWN_ATTRIBUTES = ("keep_combined_grad", "check_finite", "backend", "_communicator", "_state_layout", "_has_fixed_terms")


class TermOptimizer(Optimizer):
    """Base class of MTAdam and CombinedAdam: terms, backends, parameter tables, step, checkpoints.

    The names of the terms stand in every parameter group under ``"terms"``, in the order in which they were first seen,
    so that checkpoints hold them. Subclasses say in :meth:`_update` which kernels make a step.
    """

    hyperparameters: ClassVar[type[Hyperparameters]]  # of a parameter group
    _collector: GradientCollector
    _last_terms: tuple[Term, ...] = ()  # of the parameter groups, also of those that were removed
    _step_supports_amp_scaling = True  # so that GradScaler calls step(), which says what to call instead

    @torch._disable_dynamo  # a graph break in torch's __init__ would lose the attributes set before it
    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        state_layout: StateLayout,
        terms: Iterable[Term] | None,
        keep_combined_grad: bool,
        check_finite: bool,
        backend: str | Backend,
        process_group: Any,
    ) -> None:
        self.keep_combined_grad = keep_combined_grad
        self.check_finite = check_finite
        self.backend = backend
        self._state_layout = state_layout
        self._has_fixed_terms = terms is not None
        self._communicator = Communicator(process_group)
        defaults = self.hyperparameters.checked(defaults)
        names = None if terms is None else check_terms(terms)
        if names == ():
            raise ValueError("terms is empty; name all loss terms, or leave it out")
        super().__init__(params, defaults)
        if names is not None:
            self._set_terms(names)
            self._check_terms(names, allow_more=False)
        self._reset()

    def _reset(self) -> None:
        """Forget the waiting gradients and everything derived from groups and state."""
        self._last_terms = self.terms
        self._communicator.set_params(self._params())
        if not hasattr(self, "_collector"):
            self._collector = GradientCollector(self._communicator)
        self._collector.clear()  # which still knows what the last step has left in p.grad
        self._misuse_watch = MisuseWatch(is_settled=bool(self.terms))
        self._table_cache = ParamTableCache(self._state_layout)
        self._validated: list[Hyperparameters] = []
        self._backends: dict[torch.device, Backend] = {}
        self._select_backends()

    def _select_backends(self) -> None:
        add_backends(self._backends, self.backend, self._params())

    # -- parameters and terms ------------------------------------------------------------------------------------------

    @property
    def terms(self) -> tuple[Term, ...]:
        """Names of the loss terms, as fixed or in the order in which they were first seen; positions for a list."""
        return self.param_groups[0]["terms"]

    def _set_terms(self, terms: Iterable[Term]) -> None:
        self._last_terms = tuple(terms)
        for group in self.param_groups:
            group["terms"] = self._last_terms

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _param_names(self) -> list[str]:
        """Return the names of all parameters, or nothing where the optimizer was not made from named ones."""
        return unique_names(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. Its entries override the defaults, as in torch.optim.

        Raises:
            ValueError: a hyper-parameter out of its range, or an option of the whole optimizer, such as ``backend``;
                nothing has been added.
            TypeError: parameters that are not real, dense and floating-point, none, or a set of them.
        """
        if isinstance(param_group, Mapping):
            param_group = self.hyperparameters.checked(param_group, self.defaults)
            if misplaced := sorted(set(param_group) & OF_THE_WHOLE):
                raise ValueError(
                    f"the parameter group has {', '.join(misplaced)}, which no group can override; pass it to the "
                    "optimizer itself"
                )
            params = param_group.get("params")
            if params is None or isinstance(params, set):
                kind = "no 'params'" if params is None else "a set as its 'params', which has no order"
                raise TypeError(f"the parameter group {list(param_group)} has {kind}; give it a list of parameters")
            param_group = {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}
            for i, param in enumerate(param_group["params"]):
                param = param[1] if isinstance(param, tuple) else param
                check_param(i, param)
                self._communicator.check_param(i, param)
        super().add_param_group(param_group)
        self._communicator.set_params(self._params())
        is_first = len(self.param_groups) == 1  # perhaps after all others were removed
        self._set_terms(self.param_groups[0].get("terms", self._last_terms) if is_first else self.terms)

    def _with_terms(self, names: Iterable[Term], *, allow_more: bool) -> list[Term]:
        """Return the terms with the new ones among ``names`` appended, if the optimizer can take them."""
        terms = add_terms(self.terms, names, fixed=self._has_fixed_terms)
        self._check_terms(terms, allow_more=allow_more)
        self._misuse_watch.look_at_terms(terms, self.terms)
        return terms

    def _check_terms(self, terms: Sequence[Term], *, allow_more: bool) -> None:
        """Raise ValueError for terms that the optimizer has no weights for.

        Args:
            allow_more: whether more terms may follow.
        """

    def _check_term_block(self) -> None:
        """Raise RuntimeError for gradients that wait, and that a :meth:`term` block cannot be added to."""

    @property
    def _needs_losses(self) -> bool:
        """Whether the step looks at the losses."""
        return False

    @property
    def _looks_at_batch(self) -> bool:
        """Whether the terms' weights depend on the batch."""
        return True

    @property
    def _takes_grad_scale(self) -> bool:
        """Whether the step can divide by a GradScaler's scale, and skip itself, without waiting for the device."""
        if self.keep_combined_grad or self.check_finite:
            return False
        return all(getattr(backend, "takes_grad_scale", False) for backend in self._backends.values())

    def _check_unscale(self) -> None:
        """Raise RuntimeError for gradients that wait, and that a GradScaler cannot unscale."""

    # -- gradients -----------------------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def backward(
        self, losses: Losses, *, retain_graph: bool = False, inputs: Tensor | Iterable[Tensor] | None = None
    ) -> Tensor:
        """Differentiate each loss term separately, with one backward pass per term.

        Afterwards the gradients wait in the optimizer for :meth:`step`, and ``p.grad`` is None. Another call before
        ``step()`` adds to them (gradient accumulation).

        Args:
            losses: scalar losses: a mapping from the terms' names, which are strings or whole numbers; or a sequence
                with one for each of :attr:`terms`, in their order. A term that is left out of a mapping is absent from
                the step: its running norms and second moments stay as they are.
            retain_graph: keep the graph after the last term too.
            inputs: differentiate with respect to these tensors only (as in torch.autograd.backward). In the generator's
                step of a GAN this skips the discriminator's gradients.

        Returns:
            The sum of this process's losses, a scalar without a graph, to be logged. It has no part in the step.

        Raises:
            TypeError: ``losses`` that are no mapping or sequence of Tensors, or a name that is no string or whole
                number. Nothing has changed.
            ValueError: a loss that is not a real, floating-point scalar with a graph; a sequence of another length than
                ``terms``; a loss that is infinite or NaN, where to look costs nothing: on the CPU, without a
                ``process_group``. Nothing has changed.
            RuntimeError: from autograd, from the ``process_group``, or a gradient that no step can use. All waiting
                gradients are then dropped, as by :meth:`zero_grad`.
        """
        if inputs is not None:
            inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)  # an iterator would be used up
        named = named_losses(losses, self.terms, need_finite=not self._communicator)
        terms = self._with_terms(named, allow_more=False)
        self._collector.free_grads(self._params(), self._param_names)
        total = sum_losses(named)  # before the graphs are freed, and the losses exchanged by hooks
        try:
            with explain_donated_buffers():
                self._differentiate(named, terms, retain_graph, inputs)
        except BaseException:
            self.zero_grad()
            raise
        self._set_terms(terms)
        return total

    def _differentiate(
        self, losses: Mapping[Term, Tensor], terms: list[Term], retain_graph: bool, inputs: Sequence[Tensor] | None
    ) -> None:
        """Run one backward pass per term, and take the gradients. ``terms`` are all terms so far."""
        for number, (term, loss) in enumerate(losses.items(), start=1):
            torch.autograd.backward(loss, retain_graph=retain_graph or number < len(losses), inputs=inputs)
            check_inputs(inputs or ())
            self._collector.take(terms.index(term), term, self._params(), loss)

    @torch._disable_dynamo
    @contextmanager
    def term(self, term: Term, loss: Tensor | None = None) -> Iterator[None]:
        """Take the gradients that the body leaves in ``p.grad`` as those of one term, whatever engine made them.

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
        name = find_term(term, self.terms)
        if loss is not None:
            check_loss(name, loss, need_graph=False, need_finite=not self._communicator)
        terms = self._with_terms([name], allow_more=True)
        self._check_term_block()
        self._collector.free_grads(self._params(), self._param_names)
        try:
            with self._collector.open_term(name):
                yield
                self._take(terms.index(name), name, loss)
                self._set_terms(terms)
        except BaseException:
            super().zero_grad(set_to_none=True)
            raise

    @torch._disable_dynamo  # what exempts term() does not cover the code after its yield
    def _take(self, position: int, term: Term, loss: Tensor | None) -> None:
        self._collector.take(position, term, self._params(), loss, may_share=True)

    @torch._disable_dynamo
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all terms and set ``p.grad`` to None, whatever ``set_to_none`` is.

        Ends a :meth:`term` block too that an interrupt has left open.
        """
        self._collector.clear()
        self._collector.close_term()
        self._collector.forget_combined()
        super().zero_grad(set_to_none=True)

    @cached_property
    def scaled(self) -> Any:
        """The view of this optimizer that a ``torch.amp.GradScaler`` takes in its place.

        The step divides the gradients by the scale, and changes nothing if one of them is not finite: on the device, so
        that the host waits for nothing. The losses given with the gradients (scaled ones, in :meth:`term` too) are
        unscaled where a rule looks at them. With ``keep_combined_grad`` or ``check_finite``, a rule that keeps state,
        the reference, or a backend of your own, the GradScaler unscales the gradients in place, and waits for the
        device to see whether to step; what it does not step with is dropped by the next :meth:`backward`. ::

            scaler = torch.amp.GradScaler()
            ...
            optimizer.zero_grad()
            optimizer.backward({name: scaler.scale(loss) for name, loss in losses.items()})
            scaler.unscale_(optimizer.scaled)  # before clip_grad_norm_
            optimizer.clip_grad_norm_(1.0)
            scaler.step(optimizer.scaled)
            scaler.update()
        """
        return GradScalerView(self)

    # -- the step ------------------------------------------------------------------------------------------------------

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients that :meth:`backward` and :meth:`term` have taken, and drop them.

        Changes the parameters that a term has reached, and their state, in place. Without any gradient it does nothing.
        An interrupt, such as Ctrl-C, never makes a gradient count twice: gradients are dropped just before the kernels
        run. The kernels run on the current stream of each device, which has to be one that waits for the gradients.

        A step can be captured in a CUDA graph, after one that was not. A learning rate that is a Tensor on the device
        may then change between replays; the other hyper-parameters stay what they were. Capture again after a new term
        or parameter group, ``load_state_dict``, or an exchange of tensors of the state: the graph still has the memory
        from before. With a ``process_group``, backward passes and step need one graph.

        Args:
            closure: called first, with gradients enabled, to compute the losses and call :meth:`backward`.

        Returns:
            What ``closure`` returned.

        Raises:
            TypeError: a ``closure`` that cannot be called. Nothing has changed.
            ValueError: a hyper-parameter out of its range, or too few terms for the weights. Nothing has changed.
            RuntimeError: inside a :meth:`term` block; gradients in ``p.grad`` that belong to no term; with
                ``check_finite``, a gradient that is not finite. Nothing has changed.
        """
        result = None
        if closure is not None and not callable(closure):
            raise TypeError(f"closure is a {type(closure).__name__}; give losses to backward(), then call step()")
        self._collector.refuse_open_term()
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        refuse_grad_scaler(self)
        if not self._collector:
            self._collector.clear()  # losses of terms that have reached no parameter
            if not self._make_state():
                self._collector.refuse_unowned_grads(self._params(), self._param_names)
            return result
        steps = self._prepare_steps()
        if self.keep_combined_grad:
            for args in steps:  # before the first kernel: their addresses are looked up once
                args.allocate_combined()
        self._ask(steps)
        self._misuse_watch.look_at_step(
            self._params(), self._collector, self._communicator, weighs_batch=self._looks_at_batch
        )
        for args in steps:
            # Autograd does not see the kernels write: with the old versions it would accept stale saved tensors.
            torch.autograd.graph.increment_version(list(compress(args.table.params, args.has_grad)))
            if args.table.has_shards:
                torch.autograd.graph.increment_version(list(compress(args.table.local_params, args.has_grad)))
            args.copy_in()
        # After an interrupt from here on nothing waits that could be stepped on twice.
        self._collector.clear()
        self._collector.forget_combined()
        try:
            self._update(steps)
        finally:  # after an interrupt too: state has advanced
            for args in steps:
                args.copy_out()
        for args in steps:
            self._leave_combined(args)
        return result

    def _prepare_steps(self) -> list[StepArgs]:
        """Return what the kernels need for a step with the gradients that wait. Raise for all that can refuse it."""
        grads = self._collector.rows(len(self.terms), self._params())
        groups = self._validate_groups()
        weights = [group.weights(self.terms) for group in groups]
        anchors = [group.anchor_code(self.terms) for group in groups]
        self._check_step(grads)
        if self.check_finite:
            self._collector.check_finite(grads, self.terms)
        tables = self._table_cache.get(
            self.param_groups, self.state, grads, self._select_backends, self._collector.fitted_memory()
        )
        own_grads = [[list(map(term.__getitem__, table.positions)) for term in grads] for table in tables]
        grad_scale, found_inf = self._collector.grad_scale, self._collector.found_inf
        return [
            StepArgs(
                table,
                of_table,
                groups,
                weights,
                anchors,
                grad_scale=scalar_on(table.device, grad_scale),
                found_inf=scalar_on(table.device, found_inf),
            )
            for table, of_table in zip(tables, own_grads, strict=True)
        ]

    def _make_state(self) -> bool:
        """Allocate all state where torch.distributed.checkpoint asks for it; return whether it does.

        It asks by a first step with gradients of zeros and a learning rate of 0.
        """
        if self.state or not asks_for_state(self.param_groups):
            return False
        self._table_cache.allocate(self.param_groups, self.state, len(self.terms))
        return True

    def clip_grad_norm_(self, max_norm: float, *, error_if_nonfinite: bool = False) -> Any:
        """Clip the gradients that wait for the step, in a way that subclasses choose; return norms before clipping."""
        raise NotImplementedError

    def _validate_groups(self) -> list[Hyperparameters]:
        """Return the groups' hyper-parameters. Validates only what has changed since the last step."""
        known = self._validated + [None] * (len(self.param_groups) - len(self._validated))
        self._validated = [
            last if last is not None and last.is_current(group) else self.hyperparameters.from_group(group)
            for group, last in zip(self.param_groups, known, strict=False)
        ]
        return self._validated

    def _check_step(self, grads: TermGradients) -> None:
        """Raise for what this optimizer lacks for a step with ``grads``; changes nothing."""

    def _ask(self, steps: Sequence[StepArgs]) -> None:
        """Find what the step needs beside the gradients. Can raise; leaves parameters and their state alone."""

    def _update(self, steps: Sequence[StepArgs]) -> None:
        """Run the kernels of one step over all tables."""
        raise NotImplementedError

    def _leave_combined(self, args: StepArgs) -> None:
        """Leave the combined gradients in ``p.grad``, where they are wanted."""
        for param, combined in zip(args.table.params, args.combined or (), strict=False):
            if combined is not None:
                self._collector.leave_combined(param, dtensor_like(param, combined))

    def __repr__(self) -> str:
        selected = ", ".join(f"{device}: {backend.name}" for device, backend in self._backends.items())
        return f"{super().__repr__()}\nbackend={self.backend!r} ({selected})"

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what ``state_dict()`` gave, of this optimizer on any backend or of the one that it stands in for.

        MTAdam reads the state of the published MTAdam too, CombinedAdam that of torch.optim.Adam and AdamW; that of
        an AdamW before torch 2.7 does not tell its decay apart from Adam's: make ours with
        ``decoupled_weight_decay=True``. The tensors are copied, to the devices of the parameters. Gradients that wait
        for a step are dropped.

        Raises:
            ValueError: state of another model or optimizer, or hyper-parameters out of their range; nothing has
                changed.
        """
        state_dict = dict(state_dict)  # hooks may change it
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        # Everything is built before anything is assigned: an error or an interrupt leaves the optimizer as it was.
        groups, state = read_state_dict(
            state_dict,
            self.param_groups,
            self.defaults,
            hyperparameters=self.hyperparameters,
            layout=self._state_layout,
            fixed_terms=self.terms if self._has_fixed_terms else None,
        )
        self._check_loaded(groups)
        self.__setstate__({"state": state, "param_groups": groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _check_loaded(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise ValueError for parameter groups of a checkpoint that another optimizer has saved."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and copying keep: everything but the gradients that wait for a step."""
        return super().__getstate__() | {name: getattr(self, name) for name in OWN_ATTRIBUTES}

    @torch._disable_dynamo  # as __init__
    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take loaded, unpickled or copied state."""
        super().__setstate__(state)
        self._reset()


def scalar_on(device: torch.device, value: Tensor | None) -> Tensor | None:
    """Return a scalar as float32 on ``device``, without waiting for it."""
    return None if value is None else value.reshape(()).to(device, torch.float32, non_blocking=True)
