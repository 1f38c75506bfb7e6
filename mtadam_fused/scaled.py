"""What torch.amp.GradScaler takes for an optimizer whose gradients are not in ``p.grad``."""

from typing import Any, Protocol
from weakref import ref

from torch import Tensor

from .term_gradients import PendingGradients


class Stepping(Protocol):
    """An optimizer with gradients that wait for its step."""

    _pending: PendingGradients

    def step(self) -> Any: ...


class Scaled:
    """Shows a GradScaler the gradients and losses that wait for a step, and the step."""

    def __init__(self, optimizer: Stepping) -> None:
        self._reference = ref(optimizer)  # which has this object

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group, of stand-ins whose ``grad`` is what waits for a step."""
        return [{"params": [with_grad(tensor) for tensor in self._optimizer._pending.tensors()]}]

    def step(self) -> Any:
        """Makes the optimizer's step."""
        return self._optimizer.step()

    @property
    def _optimizer(self) -> Stepping:
        optimizer = self._reference()
        if optimizer is None:
            raise RuntimeError("the optimizer is no more, whose `scaled` this is; keep it as long")
        return optimizer


def with_grad(grad: Tensor) -> Tensor:
    """A tensor whose gradient is ``grad``."""
    tensor = grad.detach()
    tensor.grad = grad
    return tensor
