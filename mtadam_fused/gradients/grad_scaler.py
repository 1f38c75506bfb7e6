"""A view of an optimizer for torch.amp.GradScaler, which looks for gradients in ``p.grad`` only."""

from typing import Any, Protocol
from weakref import ref

from torch import Tensor

from .collector import GradientCollector


class Stepping(Protocol):
    """An optimizer whose gradients wait in a collector."""

    _collector: GradientCollector

    def step(self) -> Any: ...

    @property
    def _needs_losses(self) -> bool: ...

    @property
    def _takes_grad_scale(self) -> bool: ...

    def _check_unscale(self) -> None: ...


class GradScalerView:
    """Show a GradScaler the gradients and losses that wait for a step, and make the step."""

    def __init__(self, optimizer: Stepping) -> None:
        self._reference = ref(optimizer)  # which owns this view

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group of stand-ins, whose ``grad`` is what waits for a step."""
        optimizer = self._optimizer
        optimizer._check_unscale()
        targets = optimizer._collector.unscale_targets(losses=optimizer._needs_losses)
        return [{"params": [stand_in(tensor) for tensor in targets]}]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether the step itself divides by the scale and skips itself, so that the GradScaler need not wait.

        Then the GradScaler leaves both tensors in ``grad_scale`` (None if the gradients are unscaled) and ``found_inf``
        of this object, calls :meth:`step`, and deletes them.
        """
        return self._optimizer._takes_grad_scale

    def step(self) -> Any:
        """Make the optimizer's step."""
        optimizer = self._optimizer
        given = vars(self)
        collector = optimizer._collector
        collector.grad_scale, collector.found_inf = given.get("grad_scale"), given.get("found_inf")
        try:
            return optimizer.step()
        except BaseException:
            given.pop("grad_scale", None)  # else the next one would be multiplied by it
            given.pop("found_inf", None)
            raise
        finally:
            collector.grad_scale = collector.found_inf = None

    @property
    def _optimizer(self) -> Stepping:
        optimizer = self._reference()
        if optimizer is None:
            raise RuntimeError("the optimizer of this GradScaler view was deleted; keep a reference to it")
        return optimizer


def refuse_grad_scaler(optimizer: Any) -> None:
    """Raise RuntimeError in a step that a GradScaler makes with ``optimizer`` itself, not with its view."""
    given = vars(optimizer)
    if "found_inf" in given:  # GradScaler sets it, and would leave it after an error
        given.pop("found_inf")
        given.pop("grad_scale", None)
        raise RuntimeError(
            "a GradScaler looks for gradients in p.grad, but they wait in the optimizer; call "
            "scaler.step(optimizer.scaled), and scaler.unscale_(optimizer.scaled), instead of giving it the optimizer"
        )


def stand_in(grad: Tensor) -> Tensor:
    """Return a tensor whose gradient is ``grad``."""
    tensor = grad.detach()
    tensor.grad = grad
    return tensor
