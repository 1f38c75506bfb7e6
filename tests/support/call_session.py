"""Calls on an optimizer beside the float64 model of them, compared after every call.

A failing sequence is printed as calls on a :class:`Session`, so that it can be run again.
"""

import io
import pickle
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtadam_fused import MTAdam
from tests.support.call_checks import CheckedCalls
from tests.support.call_model import CallModel, Refused
from tests.support.call_problem import (
    FIXED_WEIGHTS,
    Given,
    Spec,
    as_array,
    draw_losses,
    make_optimizer,
    make_params,
    to_model,
)
from tests.support.cases import lay_out
from tests.support.interrupts import Interrupter

OWN = ("second_moments", "keep_combined_grad", "check_finite", "passes")  # of the optimizer, not of its groups


class Session(CheckedCalls):
    """An optimizer and its model.

    Args:
        kind: "MTAdam", "BalancedAdam", or the rule of CombinedAdam: "fixed", "normalization" or "by_loss".
        params: shape, type and layout of each parameter.
        groups: the number of parameters and the hyper-parameters of each group.
        backend: of the optimizer.
        seed: of the parameters.
        fault: of the model.
        options: of the optimizer.
    """

    def __init__(
        self,
        kind: str,
        params: Sequence[Spec],
        groups: Sequence[tuple[int, dict[str, Any]]],
        backend: str,
        seed: int,
        fault: str | None = None,
        **options: Any,
    ) -> None:
        self.kind, self.backend, self.options = kind, backend, options
        self.params = make_params(params, seed)
        remaining = iter(self.params)
        given = [{"params": [next(remaining) for _ in range(count)], **own} for count, own in groups]
        self.optimizer = make_optimizer(kind, given, backend, options)
        fixed = {name: getattr(self.optimizer, name, None) for name in OWN}
        shared = kind not in ("MTAdam", "BalancedAdam") or options.get("second_moments") == "shared"
        fixed |= {
            "second_moments": "shared" if shared else "per_term",
            "weights": FIXED_WEIGHTS,
            "terms": options.get("terms"),
        }
        model_kind = "MTAdam" if kind == "BalancedAdam" else kind
        values = [{"param": as_array(p)} for p in self.params]
        dtypes = [p.dtype for p in self.params]
        self.model = CallModel(model_kind, dtypes, values, self._groups(), fixed, fault)
        self.model.terms = list(self.optimizer.terms)
        self.saved: list[tuple[Any, Any]] = []  # by the optimizer and by the model
        self.kept: dict[int, Tensor] = {}  # memory of parameters that have other memory for a while

    def _groups(self) -> list[dict[str, Any]]:
        """Return the hyper-parameters of the optimizer's groups, and the positions of their parameters."""
        found, start = [], 0
        for group in self.optimizer.param_groups:
            own = {name: deepcopy(group[name]) for name in self.optimizer.hyperparameters.names()}
            found.append(own | {"positions": list(range(start, start + len(group["params"])))})
            start += len(group["params"])
        return found

    # -- gradients -----------------------------------------------------------------------------------------------------

    def backward(
        self, terms: Sequence[str], seed: int, bad: float | None = None, raises: bool = False, as_list: bool = False
    ) -> None:
        """Call ``backward``; with ``raises`` the last loss's backward pass is interrupted."""
        terms = self.model.terms or terms if as_list else terms
        drawn = draw_losses(self.params, terms, seed, bad)
        losses: Any = {
            term: Given.apply(
                value, list(grads.values()), raises and term == terms[-1], *(self.params[i] for i in grads)
            )
            for term, (value, grads) in drawn.items()
        }
        if as_list and self.optimizer.terms:
            losses = list(losses.values())
        expected = {term: to_model(grads) for term, (_, grads) in drawn.items()}
        values = {term: value for term, (value, _) in drawn.items()}

        def act() -> None:
            total = self.optimizer.backward(losses)
            self._require_close("what backward() returns", total.item(), sum(values.values()), 1e-9)

        self._call(
            act,
            lambda model: model.backward(expected, values, raises),
            KeyboardInterrupt if raises else None,
        )

    def term(
        self, name: str, seed: int, bad: float | None = None, raises: bool = False, loss: bool = True, layout: str = ""
    ) -> None:
        """Put gradients into ``p.grad`` in a ``term`` block; with ``raises`` the block is then interrupted."""
        ((value, grads),) = draw_losses(self.params, [name], seed, bad).values()
        expected = to_model(grads)

        def act() -> None:
            with self.optimizer.term(name, torch.tensor(value) if loss else None):
                for i, grad in grads.items():
                    self.params[i].grad = lay_out(grad, layout)
                if raises:
                    raise KeyboardInterrupt

        self._call(
            act,
            lambda model: model.term(name, expected, value if loss else None, raises),
            KeyboardInterrupt if raises else None,
        )

    def bad_losses(self, number: int) -> None:
        """Call ``backward`` with losses that it has to refuse."""
        loss = Given.apply(1.0, [torch.zeros_like(self.params[0])], False, self.params[0])
        bad: Any = [
            *(None, {}, loss, {"a": None}, {"a": loss, "b": 1.0}, {"a": loss, "b": loss * np.nan}),
            *({"a": loss.detach()}, {"b": loss * torch.ones(2)}, {("a", 1): loss}, [loss] * 7, {"a": loss * np.inf}),
            *([{"e": loss}] if self.model.fixed["terms"] else []),
        ]
        bad = bad[number % len(bad)]

        def refuse(model: CallModel) -> None:
            raise Refused(TypeError, ValueError)

        if not isinstance(bad, list) or self.optimizer.terms:
            self._call(lambda: self.optimizer.backward(bad), refuse)

    def clip(self, max_norm: float) -> None:
        """Clip the gradients of an optimizer of separate terms."""
        if isinstance(self.optimizer, MTAdam):
            optimizer, found = self.optimizer, {}
            self._call(lambda: found.update(optimizer.clip_grad_norm_(max_norm)), lambda model: model.clip(max_norm))
            for term, norm in found.items():
                self._require_close(f"norm of term {term}", norm.item(), *self.model.norms[term])

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._call(lambda: self.optimizer.zero_grad(set_to_none), CallModel.zero_grad)

    def stray_grad(self, number: int) -> None:
        """Leave a gradient in ``p.grad`` that is of no term."""
        i = number % len(self.params)
        if self.params[i].numel() == 0:  # no gradient of zeros: torch.distributed.checkpoint asks for state with those
            return
        self.params[i].grad = torch.ones_like(self.params[i])
        self.model.stray.add(i)
        self.model.left.discard(i)

    def step(self, closure: bool = False) -> None:
        self._call(lambda: self.optimizer.step(lambda: 3) if closure else self.optimizer.step(), CallModel.step)

    # -- hyper-parameters, groups, checkpoints -------------------------------------------------------------------------

    def set(self, group: int, name: str, value: Any) -> None:
        """Change a hyper-parameter of a group that has it."""
        group %= len(self.optimizer.param_groups)
        if name in self.optimizer.param_groups[group]:
            if name == "betas" and self.kind not in ("MTAdam", "BalancedAdam"):
                value = value[:2]
            self.optimizer.param_groups[group][name] = value
            self.model.groups[group][name] = value

    def bad_step(self, group: int, name: str, value: Any) -> None:
        """Make a step, to be refused, with a hyper-parameter that is out of its range."""
        chosen = self.optimizer.param_groups[group % len(self.optimizer.param_groups)]
        if not self.model._waits():
            return

        def refuse(model: CallModel) -> None:
            raise Refused(ValueError, RuntimeError)

        kept, chosen[name] = chosen[name], value
        self._call(self.optimizer.step, refuse, groups=False)
        chosen[name] = kept

    def add_group(self, spec: Spec, seed: int, **own: Any) -> None:
        if len(self.params) < 6:
            (p,) = make_params([spec], seed)

            def expect(model: CallModel) -> None:
                model.dtypes.append(p.dtype)
                model.values.append({"param": as_array(p)})

            self.params.append(p)
            self._call(lambda: self.optimizer.add_param_group({"params": [p], **own}), expect, groups=False)
            self.model.groups = self._groups()
            for name, value in own.items():
                self._require(self.model.groups[-1][name] == value, f"{name} of the new group")

    def bad_group(self, number: int) -> None:
        """Add a group that has to be refused."""
        new = nn.Parameter(torch.ones(2))
        bad: Any = [
            *({"params": [self.params[0]]}, {"params": [new], "lr": -1.0}, {"params": None}, {"lr": 0.1}, 7),
            *({"params": [new.detach().long()]}, {"params": {new}}, {"params": [new, 3]}),
        ][number % 8]

        def refuse(model: CallModel) -> None:
            raise Refused(TypeError, ValueError)

        self._call(lambda: self.optimizer.add_param_group(bad), refuse)

    def save(self) -> None:
        self.saved.append((deepcopy(self.optimizer.state_dict()), self.model.save()))

    def load(self, number: int, fresh: bool = False, file: bool = False) -> None:
        """Load a saved state, into this optimizer or a fresh one; through a file or as it is."""
        if not self.saved:
            return
        state, of_model = self.saved[number % len(self.saved)]
        if file:
            torch.save(state, buffer := io.BytesIO())
            buffer.seek(0)
            state = torch.load(buffer)
        if fresh:
            self._renew([{"params": group["params"]} for group in self.optimizer.param_groups])
        self._call(lambda: self.optimizer.load_state_dict(state), lambda model: model.load(of_model))

    def _renew(self, groups: list[dict[str, Any]]) -> None:
        """Go on with a new optimizer."""
        self.optimizer.zero_grad()
        self.model.zero_grad()
        self.optimizer = make_optimizer(self.kind, groups, self.backend, self.options)
        self.model.terms, self.model.groups = list(self.optimizer.terms), self._groups()
        self.model.values = [{"param": values["param"]} for values in self.model.values]

    def copy(self, by_pickle: bool = False) -> None:
        """Go on with a copy of optimizer and parameters."""
        pair = (self.params, self.optimizer)
        self.params, self.optimizer = pickle.loads(pickle.dumps(pair)) if by_pickle else deepcopy(pair)
        self.kept = {}
        self._call(lambda: None, CallModel.copy)

    # -- changes from outside ------------------------------------------------------------------------------------------

    def convert(self, number: int | None, dtype: torch.dtype) -> None:
        """Give a parameter, or all, another type, as ``Module.to`` does."""
        chosen = range(len(self.params)) if number is None else [number % len(self.params)]
        if self.model.left:  # their type would change too
            self.zero_grad()
        for i in chosen:
            if i not in self.model.stray:
                self.params[i].data = self.params[i].data.to(dtype)
                self.model.dtypes[i] = dtype
                self.model.values[i]["param"] = as_array(self.params[i])
        self._call(lambda: None, lambda model: None)

    def swap(self, number: int, dtype: torch.dtype) -> None:
        """Give a parameter memory of another type, or bring back what it had before, as for averaged weights."""
        i = number % len(self.params)
        if i in self.model.stray or i in self.model.left:
            return
        p = self.params[i]
        p.data, self.kept[i] = self.kept.get(i, p.data.to(dtype, copy=True)), p.data
        self.model.dtypes[i], self.model.values[i]["param"] = p.dtype, as_array(p)
        self._call(lambda: None, lambda model: None)

    def exchange(self, number: int, layout: str, state: bool = False) -> None:
        """Move a parameter, or all state, to other memory; ``layout`` as in ``lay_out``, or "shared"."""
        all_state = (value for of_param in self.optimizer.state.values() for value in of_param.values())
        for tensor in all_state if state else [self.params[number % len(self.params)]]:
            if layout == "shared":
                tensor.share_memory_()
            else:
                tensor.data = lay_out(tensor.detach().clone(), layout)
        self._call(lambda: None, lambda model: None)

    def move(self, device: str) -> None:
        """Move all parameters, as ``Module.to`` does, where there is such a device and the backend takes it."""
        if device == "cuda" and not (torch.cuda.is_available() and self.backend == "reference"):
            return
        self.zero_grad()
        for p in self.params:
            p.data = p.data.to(device)
        self._call(lambda: None, lambda model: None)

    # -- interrupts ----------------------------------------------------------------------------------------------------

    def interrupt(self, line: int, call: str, again: bool = False, **arguments: Any) -> None:
        """Make a call that is interrupted at a line of the package; with ``again`` step before all is dropped."""
        self.interrupter, self.step_again = Interrupter(line), again
        try:
            getattr(self, call)(**arguments)
        finally:
            self.interrupter = None
