"""What all frameworks need: the optimizer inside their wrapper, and no second average of gradients."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from ..optimizer import TermOptimizer


def find_term_optimizer(optimizer: Any) -> TermOptimizer | None:
    """Return the optimizer of this package inside a framework's ``optimizer``, None where it is another one."""
    innermost = unwrap(optimizer)
    return innermost if isinstance(innermost, TermOptimizer) else None


def need_term_optimizer(optimizer: Any) -> TermOptimizer:
    """Return what :func:`find_term_optimizer` does.

    Raises:
        TypeError: it finds none.
    """
    innermost = unwrap(optimizer)
    if not isinstance(innermost, TermOptimizer):
        raise TypeError(
            f"the optimizer is a {type(innermost).__name__}; give the trainer one of mtadam_fused, such as "
            "BalancedAdam, or return a single loss"
        )
    return innermost


def unwrap(optimizer: Any) -> Any:
    """Return the innermost optimizer. Lightning and Accelerate keep what they wrap as ``.optimizer``."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer


def without_sync(model: Any, optimizer: TermOptimizer) -> AbstractContextManager[None]:
    """Return a context for forward and backward passes in which DistributedDataParallel averages no gradients.

    It would average those of the first term only, and fails where that term does not reach all parameters.

    Raises:
        RuntimeError: the optimizer does not average them either.
    """
    if not isinstance(model, DistributedDataParallel):
        return nullcontext()
    if processes := optimizer._communicator.ignored_processes():
        raise RuntimeError(
            f"this is one of {processes} processes, and DistributedDataParallel cannot average the gradients of single "
            "terms; make the optimizer with process_group=torch.distributed.group.WORLD, once the framework has "
            "started the processes (the group is None before)"
        )
    return model.no_sync()


def refuse_scaler(scaler: Any, remedy: str) -> None:
    """Raise RuntimeError where the framework has made a GradScaler, which it steps with in a way of its own."""
    if scaler is not None and scaler.is_enabled():
        raise RuntimeError(f"float16 training with a GradScaler takes the optimizer's place in the step; {remedy}")


def check_order(cls: type, mixin: type, method: str) -> None:
    """Raise TypeError where a base of ``cls`` that comes before the ``mixin`` hides its ``method``."""
    for base in cls.__mro__[: cls.__mro__.index(mixin)]:
        if method in vars(base) and not issubclass(base, mixin):
            order = f"class {cls.__name__}({mixin.__name__}, {base.__name__})"
            raise TypeError(f"{base.__name__} comes before {mixin.__name__} and hides its {method}(); write {order}")
