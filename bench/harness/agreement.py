"""Compare the contenders' first update with the expected one, in float64, before any is timed.

Each parameter's update depends on its own gradients alone, so the smaller parameters of a workload are enough to look
at; that every size is right is for the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.harness.measure import Contender, Failure, Oracle, summarize_error
from bench.harness.records import OURS
from oracles.published_loop import PublishedMTAdam
from oracles.tolerances import TooFar, check_params, check_update

CHECKED_ELEMENTS = 300_000


def mtadam(params: list[nn.Parameter], grads: list[list[Tensor]]) -> None:
    """Make a step of the published loop."""
    PublishedMTAdam([{"params": params}], terms=len(grads)).step(grads)


def adam(params: list[nn.Parameter], grads: list[list[Tensor]]) -> None:
    """Make a step of torch.optim.Adam, parameter by parameter, on the first gradients."""
    for p, g in zip(params, grads[0], strict=True):
        p.grad = g
    torch.optim.Adam(params, foreach=False, fused=False).step()


def balanced_adam(weights: Sequence[float]) -> Oracle:
    """Return an oracle: a step of torch.optim.Adam on the weighted sum of the gradients, each divided by its norm."""

    def oracle(params: list[nn.Parameter], grads: list[list[Tensor]]) -> None:
        unit = [[g / g.norm() for g in of_term] for of_term in grads]
        weighted_adam(weights)(params, unit)

    return oracle


def weighted_adam(weights: Sequence[float]) -> Oracle:
    """Return an oracle: a step of torch.optim.Adam on the sum of the terms' gradients times these weights."""

    def oracle(params: list[nn.Parameter], grads: list[list[Tensor]]) -> None:
        adam(params, [[weighted_sum(weights, of_terms) for of_terms in zip(*grads, strict=True)]])

    return oracle


def weighted_sum(weights: Sequence[float], grads: Sequence[Tensor]) -> Tensor:
    """Return the sum of the gradients times their weights."""
    return torch.stack([w * g for w, g in zip(weights, grads, strict=True)]).sum(dim=0)


def choose_rows(params: Sequence[Tensor]) -> list[int]:
    """Return positions of the smallest parameters, at least one, of at most CHECKED_ELEMENTS together."""
    chosen: list[int] = []
    elements = 0
    for i in sorted(range(len(params)), key=lambda i: params[i].numel()):
        elements += params[i].numel()
        if chosen and elements > CHECKED_ELEMENTS:
            break
        chosen.append(i)
    return chosen


@dataclass(frozen=True)
class Start:
    """The parameters and gradients that all contenders of a case start from: those that are compared."""

    rows: list[int]
    params: list[Tensor]
    grads: list[list[Tensor]]  # [K][rows], float64
    _after: dict[tuple[Oracle, float], list[Tensor]] = field(default_factory=dict)

    def after(self, oracle: Oracle, rounding: float = 0.0) -> list[Tensor]:
        """Return the parameters, in float64, after the oracle's step.

        Add ``rounding`` to each gradient, as a share of its absolute value.
        """
        if (oracle, rounding) not in self._after:
            params = [nn.Parameter(p.double()) for p in self.params]
            oracle(params, [[g + rounding * g.abs() for g in of_term] for of_term in self.grads])
            self._after[oracle, rounding] = [p.detach() for p in params]
        return self._after[oracle, rounding]

    @staticmethod
    def copy_of(params: Sequence[Tensor], grads: Sequence[Sequence[Tensor]]) -> "Start":
        """Copy the parameters and gradients that are compared."""
        rows = choose_rows(params)
        copies = [params[i].detach().cpu().clone() for i in rows]
        return Start(rows, copies, [[of_term[i].cpu().double() for i in rows] for of_term in grads])


def check_first_run(contender: Contender, start: Start) -> None:
    """Make the contender's first run, and compare it with its oracle's.

    Raises:
        TooFar: they disagree.
    """
    contender.prepare()
    contender.run()
    if contender.oracle is None:
        return
    made = [contender.params[i].detach().cpu() for i in start.rows]
    expected, nudged = start.after(contender.oracle), start.after(contender.oracle, contender.rounding)
    try:
        for p, after, away, before in zip(made, expected, nudged, start.params, strict=True):
            if contender.exact:
                check_params(p, after.numpy(), before, away.numpy())
            else:
                check_update(p, after.numpy(), before)
    except TooFar as error:
        raise TooFar(f"{contender.name} does not make the step that it should: {error}") from None


def describe_failure(contender: Contender, start: Start) -> Failure | None:
    """Make the contender's first run, and describe what went wrong. None if nothing did."""
    try:
        check_first_run(contender, start)
    except TooFar as error:
        return Failure(f"WRONG: {error}")
    except Exception as error:  # whatever a compiler or the device raises
        return Failure(f"FAILED: {summarize_error(error)}")
    return None


def check_contenders(contenders: Sequence[Contender], start: Start) -> tuple[list[Contender], dict[str, str]]:
    """Make all first runs. Return the contenders to time, and the reasons to leave out the others.

    A wrong one does not cost the others their case, unless no optimizer of ours is left in it.
    """
    wrong: dict[str, str] = {c.name: why for c in contenders if (why := describe_failure(c, start)) is not None}
    right = [contender for contender in contenders if contender.name not in wrong]
    if wrong and not any(contender.name.startswith(OURS) for contender in right):
        return [], wrong | {contender.name: "nothing of ours is right here to compare it with" for contender in right}
    return right, wrong
