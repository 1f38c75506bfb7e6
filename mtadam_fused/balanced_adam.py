"""The BalancedAdam optimizer."""

from typing import Any

from torch import Tensor

from .hyperparameters import Term
from .mtadam import MTAdam


class BalancedAdam(MTAdam):
    """Adam for several loss terms that all pull equally hard in each layer: the setting to begin with.

    Each step takes the gradient of every term separately, divides it in each layer by its largest recent norm, and
    makes the step of torch.optim.Adam on the sum. Neither the order of the terms nor constant factors on the losses
    matter. ::

        optimizer = BalancedAdam(model.parameters(), lr=1e-3)
        for batch in loader:
            losses = {"residual": ..., "boundary": ...}
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()

    It is :class:`mtadam_fused.MTAdam` with other defaults: no anchor, decaying peaks as norms, and one second moment.
    So it keeps 8 bytes of state per element, like torch.optim.Adam. No term pulls harder than the others, not even one
    that wakes after a silence. Use ``term_weights`` to change that: ``{"residual": 1.0, "boundary": 0.1}``.

    Do not use it where the sum of the losses itself has a meaning, such as the evidence bound of a VAE, or where a
    useless solution makes one term vanish: equal pull is then another objective.

    Args:
        params: as of MTAdam.
        lr: learning rate, with its usual meaning for Adam.
        betas: decay of the first moment, of the second moment, and of the running norms, each in [0, 1).
        eps: added to the denominator.
        weight_decay: added to the sum as ``weight_decay * p``. The sum has a size of its own, whatever the losses' is:
            with ``decoupled_weight_decay=True`` the decay has its usual meaning, that of AdamW.
        anchor: as of MTAdam.
        norms: as of MTAdam.
        second_moments: as of MTAdam.
        **options: all else that MTAdam takes.

    Raises:
        ValueError, TypeError, RuntimeError: as of MTAdam.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.9, 0.999, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        anchor: Term = "none",
        norms: str = "decaying_peak",
        second_moments: str = "shared",
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            anchor=anchor,
            norms=norms,
            second_moments=second_moments,
            **options,
        )
