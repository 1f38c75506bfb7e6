"""Priority-constrained descent."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hyperparameters import TermWeights, check_not_negative, is_number
from .gram_rule import GramRule
from .nonnegative import nonnegative_least
from .per_term import PerTerm
from .progress import pad_to
from .rule import copy_or_replace_

FEASIBLE = 1e-8  # how far from the conditions of the optimum the constraints still count as satisfiable


class PCD(GramRule):
    """Follow a primary term as closely as the others' guaranteed progress allows: PCD (arXiv 2606.29521).

    With h_k = g_k / sqrt(v_k + eps), v_k the running average of ``||g_k||**2``, corrected for its start, the direction
    is the d nearest to h of the primary term that has ``h_k @ d >= tau * ||h_k||**2`` for each other term k: a part
    tau of the progress that a step along h_k itself makes. It is scaled to the length of the primary gradient. Where
    the primary gradient is zero, so are all weights. Where no direction serves all terms, as with opposite gradients,
    the primary gradient alone is followed. A term whose gradient is zero is guaranteed nothing, and its running average
    stays as it is.

    While the primary gradient serves a term well enough by itself, the term's weight is 0: then what only that term
    reaches, such as its head, stands still.

    Up to eight terms nothing waits for the device. Of more, an active set on the host: one wait.

    Args:
        primary: the name of the primary term; default the first one.
        tau: the part of their progress that the other terms are guaranteed, from 0 to 1; one for all, or a mapping from
            the terms' names, or a sequence in their order (what it has for the primary term does not matter).
        beta: decay of the running averages, in [0, 1).
        eps: added to the running averages; with 0 the scales of the losses do not matter at all.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: ``tau``, ``beta`` or ``eps`` out of their ranges; at a step, no term of the name ``primary``, or no
            ``tau`` for a term.
    """

    shown: ClassVar[tuple[str, ...]] = ("primary", "tau", "beta", "eps")

    def __init__(
        self,
        primary: Hashable = None,
        tau: float | TermWeights = 0.02,
        beta: float = 0.999,
        eps: float = 1e-8,
        *,
        parameters: Tensor | Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(parameters=parameters)
        self._taus = PerTerm(None if isinstance(tau, (int, float)) else tau, "tau")
        self._tau_of_all = float(tau) if isinstance(tau, (int, float)) else 1.0
        taus = tau.values() if isinstance(tau, Mapping) else tau if isinstance(tau, Sequence) else [tau]
        for value in taus:
            if not is_number(value) or not 0.0 <= float(value or 0.0) <= 1.0:
                raise ValueError(f"tau is {tau!r}; it must be from 0 to 1, one number for all or one for each term")
        if not is_number(beta) or not 0.0 <= beta < 1.0:
            raise ValueError(f"beta is {beta!r}; it must be a number in [0, 1)")
        check_not_negative("eps", eps)
        self.primary = primary
        self.tau = tau
        self.beta = beta
        self.eps = eps
        self._first = 0  # position of the primary term
        self._averages = torch.empty(0, dtype=torch.float64, device="cpu")
        self._missing = torch.empty(0, dtype=torch.float64, device="cpu")  # weight that the averages still lack

    def check_terms(self, terms: Sequence[Hashable], *, allow_more: bool) -> None:
        super().check_terms(terms, allow_more=allow_more)
        self._taus.check_terms(terms, allow_more=allow_more)
        names = list(terms)
        if self.primary in names:
            self._first = names.index(self.primary)
        elif self.primary is None or allow_more:
            self._first = 0
        else:
            raise ValueError(
                f"primary is {self.primary!r}, and the terms are {names}; name one of them, or "
                "give the optimizer all names as terms="
            )

    def coefficients(self, cosines: Tensor, norms: Tensor, preference: Tensor) -> Tensor:
        lengths = norms * self._scales(norms)
        first = lengths[self._first]
        others = torch.arange(len(norms), device=norms.device) != self._first
        needed = self._taus.like(norms) * self._tau_of_all * lengths / first
        linear = torch.where(others & (norms > 0), cosines[self._first] - needed, 0.0).nan_to_num(0.0, 0.0, 0.0)
        pairs = torch.where(others & others[:, None], cosines, torch.eye(len(norms), device=norms.device))
        added, far = nonnegative_least(pairs, linear[None])
        is_feasible = far[0] <= FEASIBLE * linear.abs().amax().clamp(min=1.0)
        direction = torch.where(is_feasible, added[0], 0.0) + (~others).to(norms.dtype)
        square = direction @ cosines @ direction
        is_zero = square <= 1e-14 * direction.sum() ** 2
        return torch.where(is_zero, 0.0, direction * norms[self._first] / square.clamp(min=1e-300).sqrt())

    def _scales(self, norms: Tensor) -> Tensor:
        """Take this step's norms into the averages, and return 1 over their roots."""
        averages, missing = pad_to(self._averages, norms, 0.0), pad_to(self._missing, norms, 1.0)
        is_present = norms > 0
        averages = torch.where(is_present, self.beta * averages + (1 - self.beta) * norms**2, averages)
        missing = torch.where(is_present, self.beta * missing, missing)
        self._averages = copy_or_replace_(self._averages, averages)
        self._missing = copy_or_replace_(self._missing, missing)
        return torch.where(is_present, 1.0 / (averages / (1 - missing) + self.eps).sqrt(), 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self._averages, "missing": self._missing}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._averages, self._missing = state["averages"].clone(), state["missing"].clone()
