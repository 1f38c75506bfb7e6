"""The protocol of MTAdam, BalancedAdam and CombinedAdam as a float64 model: which gradients a step is made of.

The model knows deliberate faults, so that tests can show that random calls find them.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.support.call_arithmetic import ROUNDOFF, Grad, Prediction, Values, advance, arithmetic, cast, squares

FAULTS = (
    "forgets what a term had",
    "applies gradients twice",
    "keeps gradients through zero_grad",
    "keeps gradients when loading",
    "drops all gradients with a block's",
    "drops gradients with a refused step",
    "sorts the terms",
    "takes an absent term for zero",
    "counts steps of parameters that no term reaches",
    "adds up no losses",
    "clips nothing",
    "takes the defaults for a group's options",
    "loads no hyper-parameters",
    "steps on gradients that are not finite",
    "lr +1 %",
    "no bias correction",
    "decay after the update",
)
OF_ORACLE = ("lr +1 %", "no bias correction", "decay after the update")

TermGrads = dict[str, dict[int, Grad]]  # by term and by the parameter's position


class Refused(Exception):
    """The call has to raise an error of these types."""

    def __init__(self, *types: type[BaseException]) -> None:
        super().__init__(*types)
        self.types = types


@dataclass
class CallModel:
    """What the optimizer has to hold; a method is a call, and raises Refused where the optimizer has to refuse.

    Attributes:
        kind: "MTAdam", or the rule of CombinedAdam: "fixed", "normalization" or "by_loss".
        values: of each parameter, as stored.
        groups: hyper-parameters; ``positions`` are those of its parameters.
        waiting: gradients, by the positions of term and parameter.
        weighted: the rule's weights where what waits, under term 0, is a weighted sum; else None.
        stray: parameters whose ``p.grad`` is of no term.
        left: parameters whose ``p.grad`` is what the last step has left there.
    """

    kind: str
    dtypes: list[torch.dtype]
    values: list[Values]
    groups: list[dict[str, Any]]
    fixed: dict[str, Any]  # what the optimizer was made with, beside hyper-parameters
    fault: str | None = None
    terms: list[Any] = field(default_factory=list)
    waiting: dict[int, dict[int, Grad]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    weighted: dict[str, float] | None = None
    stray: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    weights: dict[str, tuple[float, float]] = field(default_factory=dict)  # of the last step, and their slack
    norms: dict[Any, tuple[float, float]] = field(default_factory=dict)  # of the last clipping, and their slack

    # -- gradients -----------------------------------------------------------------------------------------------------

    def backward(self, grads: TermGrads, losses: Mapping[str, float], raises: bool = False) -> None:
        """Take gradients; with ``raises`` one of the passes fails, and all that wait are dropped."""
        terms = self._with_terms(grads)
        if not self._has_anchors(terms):
            raise Refused(ValueError)
        self._free_grads()
        one_pass = self.kind in ("fixed", "by_loss") and self.fixed["passes"] == "auto"
        waits_apart = self._waits() and self.weighted is None
        if self.weighted is not None and (not one_pass or self.kind == "by_loss"):
            self.zero_grad()
            raise Refused(RuntimeError)
        if one_pass and not waits_apart:
            self.weighted = {term: self._weight(term, losses.get(term)) for term in terms}
            grads, losses = {terms[0]: self._weighted_sum(grads)}, {}
        if raises:
            return self.zero_grad()
        for term, of_term in grads.items():
            self._take(terms.index(term), of_term, losses.get(term))
        self.terms = terms

    def term(self, name: str, grads: dict[int, Grad], loss: float | None, raises: bool = False) -> None:
        """Take the gradients of one block; with ``raises`` its body fails, and they are dropped."""
        terms = self._with_terms([name])
        if self.weighted is not None:
            raise Refused(RuntimeError)
        self._free_grads()
        if raises:
            if self.fault == "drops all gradients with a block's":
                self.zero_grad()
            return
        self._take(terms.index(name), grads, loss)
        self.terms = terms

    def clip(self, max_norm: float) -> None:
        """Clip the gradients of each term; leaves their norms, and the bounds of these, in :attr:`norms`."""
        self.norms = dict.fromkeys(self.terms, (0.0, 0.0))
        if not self._waits():
            return
        self._check_step()
        for k, of_term in self.waiting.items():
            square, of_square, size = squares(of_term.values())
            norm = float(np.sqrt(square))
            error = of_square / square + (size + 8) * 2.0**-24 if square and np.isfinite(square) else 0.0
            self.norms[self.terms[k]] = norm, norm * error
            factor = float(np.minimum(1.0, max_norm / (norm + 1e-6)))
            if self.fault != "clips nothing":
                self.waiting[k] = {i: g.times(factor, 2 * error) for i, g in of_term.items()}

    def zero_grad(self) -> None:
        if self.fault != "keeps gradients through zero_grad":
            self._drop()
        self.stray, self.left = set(), set()

    def _drop(self) -> None:
        self.waiting, self.losses, self.weighted = {}, {}, None

    def _with_terms(self, names: Any) -> list[str]:
        new = [name for name in names if name not in self.terms]
        if new and self.fixed["terms"]:
            raise Refused(ValueError)
        return [*self.terms, *(sorted(new) if self.fault == "sorts the terms" else new)]

    def _free_grads(self) -> None:
        if self.stray:
            raise Refused(RuntimeError)
        self.left = set()

    def _take(self, position: int, grads: dict[int, Grad], loss: float | None) -> None:
        if loss is not None:
            held = 0.0 if self.fault == "adds up no losses" else self.losses.get(position, 0.0)
            self.losses[position] = held + loss
        of_term = self.waiting.setdefault(position, {})
        for i, grad in grads.items():
            new = i not in of_term or self.fault == "forgets what a term had"
            of_term[i] = grad if new else of_term[i].plus(grad)

    def _waits(self) -> bool:
        return any(self.waiting.values())

    def _has_anchors(self, terms: list[str]) -> bool:
        known = ("first", "none", "geometric_mean", *terms)
        return self.kind != "MTAdam" or all(group["anchor"] in known for group in self.groups)

    # -- weights of CombinedAdam ---------------------------------------------------------------------------------------

    def _weight(self, term: str, loss: float | None) -> float:
        if self.kind == "fixed":
            return self.fixed["weights"][term]
        return 1.0 if loss is None else 1.0 / (1.0 + loss**2)

    def _weighted_sum(self, grads: TermGrads) -> dict[int, Grad]:
        """Return the gradients of one pass, which autograd adds up in the type of the parameter."""
        assert self.weighted is not None
        found: dict[int, Grad] = {}
        for term, of_term in grads.items():
            for i, g in of_term.items():
                value = self.weighted[term] * g.value
                more = Grad(value, 4 * ROUNDOFF[g.dtype] * np.abs(value), g.dtype)
                found[i] = found[i].plus(more) if i in found else more
        return found

    def _step_weights(self) -> dict[int, tuple[float, float]]:
        """Return the weight of each waiting term by its position, and the weight's relative error."""
        if self.kind != "normalization":
            return {k: (self._weight(self.terms[k], self.losses.get(k)), 1e-14) for k in self.waiting}
        present = [of_term for of_term in self.waiting.values() if of_term]
        reached = [set(of_term) for of_term in present]
        looked_at = set.intersection(*reached) or set.union(*reached)
        found = {}
        for k, of_term in self.waiting.items():
            square, error, size = squares(of_term[i] for i in looked_at & set(of_term))
            usable = np.isfinite(square) and square > 0
            found[k] = (1 / np.sqrt(square), error / square + (size + 8) * 2.0**-24) if usable else (1.0, 0.0)
        return found

    # -- the step ------------------------------------------------------------------------------------------------------

    def step(self) -> dict[int, Prediction]:
        """Return what the step makes of each parameter that it changes; :attr:`values` stay as they are."""
        if not self._waits():
            if self.stray:
                raise Refused(RuntimeError)
            self._drop()
            return {}
        self._check_step()
        found, made_of = {}, self._gradients()
        for i, of_terms in made_of.items():
            options = self._options(i)
            found[i] = advance(self.values[i], of_terms, self.dtypes[i], self.kind == "MTAdam", options)
        if self.fault == "counts steps of parameters that no term reaches":
            for values in self.values:
                values["step"] = values.get("step", 0) + (values.get("step", 0) > 0)
        if self.fault != "applies gradients twice":
            self._drop()
        self.left = set(found) if self.fixed["keep_combined_grad"] else set()
        self.stray -= self.left
        return found

    def _check_step(self) -> None:
        needs_losses = self.kind == "by_loss" and self.weighted is None
        lost = needs_losses and any(of_term and k not in self.losses for k, of_term in self.waiting.items())
        all_grads = [(i, g) for of_term in self.waiting.values() for i, g in of_term.items()]
        misfit = any(g.dtype not in (self.dtypes[i], arithmetic(self.dtypes[i])) for i, g in all_grads)
        infinite = self.fixed["check_finite"] and not all(np.isfinite(g.value).all() for _, g in all_grads)
        problems: list[type[BaseException]] = [] if self._has_anchors(self.terms) else [ValueError]
        if lost or misfit or (infinite and self.fault != "steps on gradients that are not finite"):
            problems.append(RuntimeError)
        if problems:
            if self.fault == "drops gradients with a refused step":
                self._drop()
            raise Refused(*problems)

    def _gradients(self) -> dict[int, dict[int, Grad]]:
        """Return the gradients of a step by parameter and term; CombinedAdam's are one sum, under term 0."""
        by_param: dict[int, dict[int, Grad]] = {}
        for k in sorted(self.waiting):
            for i, g in self.waiting[k].items():
                by_param.setdefault(i, {})[k] = g
        if self.kind == "MTAdam":
            if self.fault == "takes an absent term for zero":
                for i, of_terms in by_param.items():
                    zero = np.zeros_like(self.values[i]["param"])
                    by_param[i] = {k: Grad(zero, zero, self.dtypes[i]) for k in range(len(self.terms))} | of_terms
            return by_param
        if self.weighted is not None:
            self.weights = {term: (weight, 1e-14 * weight) for term, weight in self.weighted.items()}
            return by_param
        weights = self._step_weights()
        self.weights = {self.terms[k]: (w, w * error) for k, (w, error) in weights.items() if self.waiting[k]}
        found = {}
        for i, of_terms in by_param.items():
            u = ROUNDOFF[arithmetic(self.dtypes[i])]
            operations = 2 * (len(of_terms) + 2)
            value = [weights[k][0] * g.value for k, g in of_terms.items()]
            slack = [
                weights[k][0] * (g.slack + (weights[k][1] + operations * u) * np.abs(g.value))
                for k, g in of_terms.items()
            ]
            found[i] = {0: Grad(np.sum(value, axis=0), np.sum(slack, axis=0), self.dtypes[i])}
        return found

    def _options(self, i: int) -> dict[str, Any]:
        """Return the options of a parameter's step, as the oracle takes them."""
        group = next(group for group in self.groups if i in group["positions"])
        if self.fault == "takes the defaults for a group's options":
            group = self.groups[0]
        options = {name: value for name, value in group.items() if name not in ("positions", "term_weights")}
        options["second_moments"] = self.fixed["second_moments"]
        options["fault"] = self.fault if self.fault in OF_ORACLE else None
        if self.kind != "MTAdam":
            return options
        weights = group["term_weights"]
        options["weights"] = None if weights is None else {k: weights[name] for k, name in enumerate(self.terms)}
        if group["anchor"] in self.terms:
            options["anchor"] = self.terms.index(group["anchor"])
        return options

    # -- checkpoints and groups ----------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        return deepcopy({"terms": self.terms, "groups": self.groups, "values": self.values})

    def load(self, saved: dict[str, Any]) -> None:
        """Load what :meth:`save` returned: all but the parameters themselves."""
        shapes = [[self.values[i]["param"].shape for i in group["positions"]] for group in self.groups]
        if shapes != [[saved["values"][i]["param"].shape for i in g["positions"]] for g in saved["groups"]]:
            raise Refused(ValueError)
        saved = deepcopy(saved)
        self.terms = saved["terms"]
        if self.fault != "loads no hyper-parameters":
            self.groups = saved["groups"]
        self.values = [
            cast(new | {"param": old["param"]}, dtype)
            for new, old, dtype in zip(saved["values"], self.values, self.dtypes, strict=True)
        ]
        if self.fault != "keeps gradients when loading":
            self._drop()

    def copy(self) -> None:
        """Go on with a copy of optimizer and parameters, which has no gradients."""
        self._drop()
        self.stray, self.left = set(), set()
