"""The optimizer of this package that a framework has wrapped."""

from typing import Any

from ..optimizer import TermOptimizer


def find_term_optimizer(optimizer: Any) -> TermOptimizer:
    """Return the optimizer of this package inside a framework's ``optimizer``, which keeps it as ``.optimizer``.

    Raises:
        TypeError: there is none.
    """
    while "_collector" not in vars(optimizer):  # Lightning's wrapper passes for an instance of the same class
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            raise TypeError(
                f"the optimizer is a {type(optimizer).__name__}; give the trainer one of mtadam_fused, such as "
                "BalancedAdam, or return a single loss"
            )
        optimizer = inner
    return optimizer


def refuse_scaler(scaler: Any, remedy: str) -> None:
    """Raise RuntimeError where the framework has made a GradScaler, which it steps with in a way of its own."""
    if scaler is not None and scaler.is_enabled():
        raise RuntimeError(f"float16 training with a GradScaler takes the optimizer's place in the step; {remedy}")
