"""The MTAdam optimizer."""

import math
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from .backends import Backend, choose
from .checkpoint import Saved, check_saved, count_terms, restore
from .hyperparameters import Hyperparameters, Term, TermWeights, weights_of
from .table import Table, TermGradients, Work
from .tables import Tables
from .term_gradients import PendingGradients
from .term_gradients import check_finite as check_gradients_finite
from .term_optimizer import TermOptimizer


class MTAdam(TermOptimizer):
    """Adam for several loss terms, balanced layer by layer (Malkiel and Wolf, arXiv 2006.14683).

    Each step takes the gradient of every term apart, brings the terms' running gradient norms in each layer to that of
    the first term, keeps a second moment per term, and lets the largest of them bound the step. With one term it is
    torch.optim.Adam. The first term ever seen is the anchor, so give one that keeps a gradient until the end. ::

        optimizer = MTAdam(model.parameters(), lr=1e-3)
        for batch in loader:
            losses = {"reconstruction": ..., "adversarial": ...}
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()

    The state of a parameter is ``step``, ``norms`` ([K] running norms), ``exp_avg``, and ``exp_avg_sq{k}`` for each
    term k that has reached it: 4K + 4 bytes per element, in float32 also for 16-bit parameters, in float64 for float64.

    Args:
        params: parameters, or dicts of parameter groups; a group can override everything from ``lr`` to ``norm_init``.
        lr: learning rate; a number, or a Tensor of one element.
        betas: decay of the first moment, of the second moments, and of the running norms, each in [0, 1).
        eps: added to the denominator.
        weight_decay: the published L2 form: ``weight_decay * p`` is added to each term's balanced gradient, so once per
            term.
        amsgrad: bound by the largest second moment so far.
        maximize: maximize the losses.
        decoupled_weight_decay: apply ``weight_decay`` once, to the parameter, before the step (as AdamW does).
        term_weights: a weight per term on top of the balance, as a mapping from names to numbers or a sequence in the
            terms' order ("ranks" in the published code); default 1 for each.
        norm_init: where a running norm starts: "first_step", at the first gradient, zero or not (published); or
            "first_nonzero", at the first whose norm is above 1e-10. The latter deviates from the publication: there a
            term whose first gradient is zero has too small a running norm, and too large a scale, for some steps.
        keep_combined_grad: leave the sum of the balanced gradients in ``p.grad`` after a step, at the cost of memory
            for one gradient; else ``p.grad`` is None then.
        check_finite: refuse a step whose gradients are not all finite, at the cost of reading them once more and of
            waiting for the device.
        backend: "auto" (the best for each device), "cuda", "triton" (for GPUs where the CUDA kernels are not built; on
            the CPU in its interpreter, where TRITON_INTERPRET=1 is set), "cpu" or "reference".

    Raises:
        ValueError: a hyper-parameter out of its range, or no such backend.
        TypeError: parameters that are not dense and real.
        RuntimeError: the backend asked for cannot serve the parameters here.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        term_weights: TermWeights = None,
        norm_init: str = "first_step",
        keep_combined_grad: bool = False,
        check_finite: bool = False,
        backend: str = "auto",
    ) -> None:
        self.keep_combined_grad = keep_combined_grad
        self.check_finite = check_finite
        self.backend = backend
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "term_weights": term_weights,
            "norm_init": norm_init,
        }
        Hyperparameters.of(defaults)
        super().__init__(params, defaults)
        self._reset()

    def _reset(self) -> None:
        """Forgets the waiting gradients and all that is derived from groups and state."""
        super()._reset()
        self._tables = Tables()
        self._backends: dict[torch.device, Backend] = {}
        self._choose_backends()

    def _choose_backends(self) -> None:
        """One backend for each device, once: what "auto" found stays, so that no step runs on another than the last."""
        devices = {p.device for p in self._params()} - self._backends.keys()
        self._backends |= {device: choose(self.backend, device) for device in devices}

    # -- the step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step with the gradients that :meth:`backward` and :meth:`term` have taken, and drops them.

        Changes the parameters that a term has reached, and their state, in place. Without any gradient it does nothing.

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
        grads = self._pending.of(len(self.terms), len(self._params()))
        groups = [Hyperparameters.of(group) for group in self.param_groups]
        weights = [weights_of(group.term_weights, self.terms) for group in groups]
        if self.check_finite:
            check_gradients_finite(grads, self.terms)
        self._choose_backends()
        self._pending.clear()
        self._combined = []
        for table in self._tables.current(self.param_groups, self.state, grads):
            self._step_table(table, grads, groups, weights)
        return result

    def _step_table(
        self, table: Table, grads: TermGradients, groups: list[Hyperparameters], weights: list[list[float]]
    ) -> None:
        work = Work(table, [[term[i] for i in table.rows] for term in grads], groups, weights)
        staged = [row for row in table.staged if work.reached[row]]
        if self.keep_combined_grad:
            work.combined = [torch.empty_like(d) if r else None for d, r in zip(table.dense, work.reached, strict=True)]
        for row in staged:
            table.dense[row].copy_(table.params[row])
        self._backends[table.device].mtadam_step(work)
        for row in staged:
            table.params[row].copy_(table.dense[row])
        # The kernels write behind autograd's back.
        torch.autograd.graph.increment_version(list(compress(table.params, work.reached)))
        if work.combined is not None:
            for param, combined in zip(table.params, work.combined, strict=True):
                if combined is not None:
                    param.grad = combined
                    self._combined.append((param, combined))

    # -- telemetry -----------------------------------------------------------------------------------------------------

    def term_norms(self) -> dict[Term, Tensor]:
        """The terms' running gradient norms after the last step.

        Returns:
            For each term a tensor of [number of parameters], NaN where the term has not reached the parameter.
        """
        return self._columns("running")

    def term_scales(self) -> dict[Term, Tensor]:
        """What the last step multiplied the terms' gradients by.

        Returns:
            For each term a tensor of [number of parameters], NaN where the term has not reached the parameter.
        """
        return self._columns("scales")

    def _columns(self, name: str) -> dict[Term, Tensor]:
        """The terms' columns of the tables' ``name``, in the order of the parameters."""
        nothing_new = PendingGradients().of(len(self.terms), len(self._params()))
        tables = self._tables.current(self.param_groups, self.state, nothing_new)
        rows = torch.tensor([row for table in tables for row in table.rows]).argsort()
        values = torch.cat(
            [getattr(t, name).masked_fill(t.running.isnan(), math.nan).to(tables[0].device) for t in tables]
        )
        return dict(zip(self.terms, values[rows.to(values.device)].unbind(dim=1), strict=False))

    def __repr__(self) -> str:
        served = ", ".join(f"{device}: {backend.name}" for device, backend in self._backends.items())
        return f"{super().__repr__()}\nbackend={self.backend!r} ({served})"

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what ``state_dict()`` gave, of this optimizer on any backend or of the published MTAdam.

        The tensors are copied, to the devices of the parameters. Gradients that wait for a step are dropped.

        Raises:
            ValueError: state of another model, or hyper-parameters out of their range; nothing has changed.
        """
        params = self._params()
        saved_groups = state_dict["param_groups"]
        for group in saved_groups:
            Hyperparameters.of({**self.defaults, **group})
        positions = [i for group in saved_groups for i in group["params"]]
        if len(positions) == len(params):  # else torch refuses
            for param, i in zip(params, positions, strict=True):
                check_saved(state_dict["state"].get(i, {}), param, i)
        wrapped = {i: Saved(state) for i, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": wrapped})

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: all but the gradients that wait for a step."""
        return super().__getstate__() | {
            name: getattr(self, name) for name in ("keep_combined_grad", "check_finite", "backend")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes loaded, unpickled or copied state; see :meth:`load_state_dict`."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name in Hyperparameters.__dataclass_fields__:  # newer than the checkpoint
                group.setdefault(name, self.defaults[name])
        saved = {p: value.state for p, value in self.state.items() if isinstance(value, Saved)}
        names = self.param_groups[0].get("terms")
        self._set_terms(range(count_terms(saved)) if names is None else names)
        for p, value in saved.items():
            self.state[p] = restore(value, p, len(self.terms))
        self._reset()
