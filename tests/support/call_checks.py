"""The comparison of an optimizer with its model after every call."""

from collections.abc import Callable, Collection
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.optimizer import TermOptimizer
from tests.support.call_arithmetic import Prediction, Values, arithmetic, cast
from tests.support.call_model import CallModel, Refused
from tests.support.call_problem import as_array
from tests.support.interrupts import Interrupter


class Disagreement(AssertionError):
    """The optimizer is not as the model says."""


class CheckedCalls:
    """Calls that are compared with the model: errors, terms, parameters, state, ``p.grad`` and telemetry."""

    optimizer: TermOptimizer
    params: list[nn.Parameter]
    model: CallModel
    backend: str
    interrupter: Interrupter | None = None
    step_again = False

    def _groups(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _call(
        self,
        act: Callable[[], Any],
        expect: Callable[[CallModel], dict[int, Prediction] | None],
        error: type[BaseException] | None = None,
        groups: bool = True,
    ) -> None:
        """Make a call on the optimizer and on the model, and compare.

        Args:
            error: raised by the user's code in the call.
            groups: whether to compare hyper-parameters.

        Raises:
            Disagreement: they differ.
        """
        before = deepcopy(self.model) if self.interrupter else None
        predictions: dict[int, Prediction] = {}
        expected: tuple[type[BaseException], ...] = (error,) if error else ()
        try:
            predictions = expect(self.model) or {}
        except Refused as refusal:
            expected = refusal.types
        raised: BaseException | None = None
        try:
            if self.interrupter:
                with self.interrupter:
                    act()
            else:
                act()
        except (Exception, KeyboardInterrupt) as caught:
            raised = caught
        if before is not None and self.interrupter and self.interrupter.where:
            if not isinstance(raised, KeyboardInterrupt):
                raise Disagreement(f"interrupted at {self.interrupter.where}, it raised {raised!r}") from raised
            self._settle(before, predictions)
            return
        if (raised is not None or expected) and not (expected and isinstance(raised, expected)):
            raise Disagreement(f"raised {raised!r}, not {[e.__name__ for e in expected]}") from raised
        self._check(predictions, groups)

    # -- comparison ----------------------------------------------------------------------------------------------------

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise Disagreement(what)

    def _check(self, predictions: dict[int, Prediction], groups: bool = True) -> None:
        """Compare everything, and let the model go on from the values that were found right."""
        model = self.model
        self._require(list(self.optimizer.terms) == model.terms, f"terms {self.optimizer.terms}, not {model.terms}")
        if groups:
            self._require(self._groups() == model.groups, f"groups {self._groups()}, not {model.groups}")
        for i, p in enumerate(self.params):
            actual = self._read(i)
            difference = self._difference(i, actual, predictions.get(i))
            self._require(not difference, f"parameter {i}: {difference}")
            model.values[i] = actual
            has_grad, owned = p.grad is not None, i in model.stray or i in model.left
            self._require(has_grad == owned, f"parameter {i} has {'a' if has_grad else 'no'} p.grad")
            if i in model.left and i in predictions:
                found = predictions[i]
                assert found.combined is not None
                assert p.grad is not None
                self._require_close(f"p.grad of parameter {i}", as_array(p.grad), found.combined, found.combined_slack)
        if predictions:
            self._check_telemetry(predictions)

    def _read(self, i: int) -> Values:
        """Return a parameter and its state as the model holds them."""
        p = self.params[i]
        values: Values = {"param": as_array(p)}
        for name, value in self.optimizer.state.get(p, {}).items():
            if name == "norm_avg":
                values |= {f"norm_avg{k}": norm for k, norm in enumerate(value.tolist()) if norm == norm}
            else:
                values[name] = float(value) if name == "step" else as_array(value)
        return values

    def _difference(self, i: int, actual: Values, prediction: Prediction | None) -> str:
        """Return how a parameter or its state differs from what they have to be; empty if they do not."""
        if prediction is not None:
            return difference(actual, prediction.values, prediction.slack)
        old = self.model.values[i]
        if not difference(actual, old):
            return ""
        # A step, also an interrupted one, casts state to the types of its parameters.
        values = cast(old, self.params[i].dtype)
        right = {n: v for n, v in values.items() if not difference({n: actual.get(n, 0.0)}, {n: v})}
        return difference(actual, old | right)

    @staticmethod
    def _require_close(what: str, actual: Any, expected: Any, slack: Any) -> None:
        if found := difference({what: actual}, {what: expected}, {what: slack}):
            raise Disagreement(found)

    def _check_telemetry(self, predictions: dict[int, Prediction]) -> None:
        if isinstance(self.optimizer, MTAdam):
            scales = [of_term.tolist() for of_term in self.optimizer.term_scales().values()]
            for i, found in predictions.items():
                for k, scale in found.scales.items():
                    slack = found.scale_slack * abs(scale)
                    self._require_close(f"scale of term {k} for parameter {i}", scales[k][i], scale, slack)
        elif isinstance(self.optimizer, CombinedAdam):
            weights = self.optimizer.last_weights()
            for term, (weight, slack) in self.model.weights.items():
                self._require_close(f"weight of term {term}", weights[term].item(), weight, slack)

    # -- interrupts ----------------------------------------------------------------------------------------------------

    def _settle(self, before: CallModel, predictions: dict[int, Prediction]) -> None:
        """Compare after an interrupt: the call is not made or wholly made, and ``zero_grad()`` opens the optimizer.

        A step is made by each type of arithmetic. Where it is not made, its gradients may wait still, but not where it
        is made.
        """
        assert self.interrupter is not None
        assert self.interrupter.where is not None
        where, within, after = self.interrupter.where, self.interrupter.within, self.model
        self.interrupter = None
        self._require(torch.is_grad_enabled(), f"interrupted at {where}: gradients are disabled")
        in_kernels = "_update" in within and self.backend == "reference"  # which works line by line
        terms: list[Any] = list(self.optimizer.terms)
        self._require(terms in (before.terms, after.terms), f"interrupted at {where}: terms are {terms}")
        self._require(self._groups() in (before.groups, after.groups), f"interrupted at {where}: groups are mixed")
        made: dict[object, set[bool]] = {}
        for i, dtype in enumerate(after.dtypes):
            actual = self._read(i)
            self.model = before
            old, self.model = not self._difference(i, actual, None), after
            new = not self._difference(i, actual, predictions.get(i))
            if i in predictions and has_gaps(self.params[i]):  # which is stepped in a copy, to be copied back
                copied = (
                    {"param": predictions[i].values["param"]}
                    if np.array_equal(actual["param"], before.values[i]["param"], equal_nan=True)
                    else {}
                )
                new = not self._difference(i, actual | copied, predictions[i])
            if not (in_kernels and i in predictions):
                self._require(old or new, f"interrupted at {where}: parameter {i} is half changed")
                if old != new:
                    made.setdefault(arithmetic(dtype) if predictions else None, set()).add(new)
            before.values[i] = actual
        self._require(not any(len(found) > 1 for found in made.values()), f"interrupted at {where}: partly made")
        self.model.values, self.model.terms, self.model.groups = before.values, terms, self._groups()
        if self.step_again and predictions:
            self._step_again(
                {i for i in predictions if in_kernels or True in made.get(arithmetic(after.dtypes[i]), ())}
            )
        self.optimizer.zero_grad()
        self.model.zero_grad()
        self._check({})

    def _step_again(self, made: Collection[int]) -> None:
        """Step after an interrupted step: where that was made, nothing may change any more."""
        try:
            self.optimizer.step()
        except RuntimeError as error:
            self._require("belongs to no term" in str(error), f"the step after an interrupted one raised {error!r}")
        for i in range(len(self.params)):
            actual = self._read(i)
            if i in made:
                difference = self._difference(i, actual, None)
                self._require(not difference, f"gradients applied twice to parameter {i}: {difference}")
            self.model.values[i] = actual


def has_gaps(tensor: Tensor) -> bool:
    """Return whether the memory of a tensor has elements between its own."""
    return tensor.stride() != torch.empty_like(tensor, device="meta").stride()


def difference(actual: Values, expected: Values, slack: Values | None = None) -> str:
    """Return the first value that differs by more than its slack; moments that there are not are zero."""
    for name in sorted(actual.keys() | expected.keys()):
        if name.startswith("norm_avg") and (name in actual) != (name in expected):
            return f"{name} is {actual.get(name)}, not {expected.get(name)}"
        if actual.get(name) is expected.get(name):
            continue
        a, b, most = np.broadcast_arrays(actual.get(name, 0.0), expected.get(name, 0.0), (slack or {}).get(name, 0.0))
        with np.errstate(all="ignore"):
            far = ~((a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= most))
        if far.any():
            return f"{name} is {a[far][:3]}, not {b[far][:3]} within {most[far][:3]}"
    return ""
