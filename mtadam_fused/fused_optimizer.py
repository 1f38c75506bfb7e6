"""What optimizers of several loss terms share whose step the kernels make: backends, tables, the step, checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import compress
from typing import Any, ClassVar

import torch

from .backends import Backend, choose
from .checkpoint import Saved, check_saved, count_terms, restore
from .hyperparameters import Hyperparameters
from .scaled import Scaled
from .shards import spread_like, version
from .table import Table, TermGradients, Work
from .tables import Tables
from .term_gradients import check_finite as check_gradients_finite
from .term_optimizer import TermOptimizer


class FusedOptimizer(TermOptimizer):
    """Base of MTAdam and CombinedAdam. Subclasses say in :meth:`_update` which kernels make a step."""

    per_term: ClassVar[bool]  # whether each term has running norms and a second moment of its own

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        keep_combined_grad: bool,
        check_finite: bool,
        backend: str,
        process_group: Any,
    ) -> None:
        self.keep_combined_grad = keep_combined_grad
        self.check_finite = check_finite
        self.backend = backend
        self.hyperparameters.of(defaults)
        super().__init__(params, defaults, process_group)

    def _reset(self) -> None:
        """Forgets the waiting gradients and all that is derived from groups and state."""
        super()._reset()
        self._tables = Tables(self.per_term)
        self._backends: dict[torch.device, Backend] = {}
        self._choose_backends()

    def _choose_backends(self) -> None:
        """One backend for each device, once: what "auto" found stays, so that no step runs on another than the last."""
        devices = {p.device for p in self._params()} - self._backends.keys()
        self._backends |= {device: choose(self.backend, device) for device in devices}

    # -- the step ------------------------------------------------------------------------------------------------------

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step with the gradients that :meth:`backward` and :meth:`term` have taken, and drops them.

        Changes the parameters that a term has reached, and their state, in place. Without any gradient it does nothing.
        The kernels run on the current stream of each device, which has to be one that waits for the gradients.

        A step can be captured in a CUDA graph, after one that was not. A learning rate that is a Tensor on the device
        may then change between replays; the other hyper-parameters stay what they were. Capture again after a new term
        or parameter group, ``load_state_dict``, or an exchange of tensors of the state: what the graph has of the
        memory before is no longer the optimizer's. With a ``process_group``, backward passes and step need one graph.

        Args:
            closure: called first, with gradients on, to compute the losses and call :meth:`backward`.

        Returns:
            What ``closure`` returned.

        Raises:
            ValueError: a hyper-parameter out of its range, or too few terms for the weights. Nothing has changed.
            RuntimeError: gradients in ``p.grad`` but of no term; with ``check_finite``, a gradient that is not finite.
                Nothing has changed.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if not self._pending:
            self._refuse_grads_of_no_term()
            return result
        grads = self._pending.of(len(self.terms), self._params())
        groups = [self.hyperparameters.of(group) for group in self.param_groups]
        weights = [group.weights(self.terms) for group in groups]
        self._check_step(grads)
        if self.check_finite:
            check_gradients_finite(grads, self.terms, self._averaging)
        tables = self._tables.current(self.param_groups, self.state, grads, before=self._choose_backends)
        works = [self._work(table, grads, groups, weights) for table in tables]
        for work in works:
            for row in work.staged:
                work.table.dense[row].copy_(work.table.parts[row])
        self._update(works)
        self._pending.clear()
        self._combined = []
        for work in works:
            self._publish(work)
        return result

    @cached_property
    def scaled(self) -> Any:
        """What a ``torch.amp.GradScaler`` takes in the place of this optimizer.

        It unscales the gradients that wait for a step, in place, and the losses given with them (scaled ones, in
        :meth:`term` too), and makes the step if all are finite. What it does not step with stays until
        :meth:`zero_grad`. ::

            scaler = torch.amp.GradScaler()
            ...
            optimizer.zero_grad()
            optimizer.backward({name: scaler.scale(loss) for name, loss in losses.items()})
            scaler.step(optimizer.scaled)
            scaler.update()
        """
        return Scaled(self)

    def _check_step(self, grads: TermGradients) -> None:
        """Raises for what this optimizer needs for a step with ``grads`` and has not; changes nothing."""

    def _update(self, works: Sequence[Work]) -> None:
        """Runs the kernels of one step over all tables."""
        raise NotImplementedError

    def _work(
        self, table: Table, grads: TermGradients, groups: Sequence[Hyperparameters], weights: list[list[float]]
    ) -> Work:
        work = Work(table, [list(map(term.__getitem__, table.rows)) for term in grads], groups, weights)
        if self.keep_combined_grad:
            work.combined = [torch.empty_like(d) if r else None for d, r in zip(table.dense, work.reached, strict=True)]
        return work

    def _publish(self, work: Work) -> None:
        """Shows users and autograd what the kernels wrote."""
        table = work.table
        for row in work.staged:
            table.parts[row].copy_(table.dense[row])
        # The kernels write behind autograd's back.
        torch.autograd.graph.increment_version(list(compress(table.params, work.reached)))
        if table.is_spread:
            torch.autograd.graph.increment_version(list(compress(table.parts, work.reached)))
        for param, combined in zip(table.params, work.combined or (), strict=False):
            if combined is not None:
                param.grad = spread_like(param, combined)
                self._combined.append((param, param.grad, version(param.grad)))

    def __repr__(self) -> str:
        served = ", ".join(f"{device}: {backend.name}" for device, backend in self._backends.items())
        return f"{super().__repr__()}\nbackend={self.backend!r} ({served})"

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what ``state_dict()`` gave, of this optimizer on any backend or of the one that it stands in for.

        MTAdam reads the state of the published MTAdam too, CombinedAdam that of torch.optim.Adam and AdamW; that of
        an AdamW before torch 2.7 does not tell its decay apart from Adam's: make ours with
        ``decoupled_weight_decay=True``. The tensors are copied, to the devices of the parameters. Gradients that wait
        for a step are dropped.

        Raises:
            ValueError: state of another model or optimizer, or hyper-parameters out of their range; nothing has
                changed.
        """
        params = self._params()
        saved_groups = state_dict["param_groups"]
        positions = [i for group in saved_groups for i in group["params"]]
        names = saved_groups[0].get("terms")
        terms = count_terms(state_dict["state"]) if names is None else len(names)
        if len(positions) == len(params):  # else torch refuses
            for param, i in zip(params, positions, strict=True):
                check_saved(state_dict["state"].get(i, {}), param, i, terms, self.per_term)
        for group in saved_groups:  # after the state, which tells better what is wrong where it is another optimizer's
            self.hyperparameters.of({**self.defaults, **group})
        wrapped = {i: Saved(state) for i, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": wrapped})

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: all but the gradients that wait for a step."""
        return super().__getstate__() | {
            name: getattr(self, name) for name in ("keep_combined_grad", "check_finite", "backend", "_averaging")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes loaded, unpickled or copied state; see :meth:`load_state_dict`."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name in self.hyperparameters.names():  # newer than the checkpoint
                group.setdefault(name, self.defaults[name])
        saved = {p: value.state for p, value in self.state.items() if isinstance(value, Saved)}
        names = self.param_groups[0].get("terms")
        self._set_terms(range(count_terms(saved)) if names is None else names)
        for p, value in saved.items():
            self.state[p] = restore(value, p, len(self.terms), self.per_term)
        self._reset()
