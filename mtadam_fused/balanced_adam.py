"""The BalancedAdam optimizer."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .backends import Backend
from .hyperparameters import Term, TermWeights
from .mtadam import MTAdam

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class BalancedAdam(MTAdam):
    """Adam for several loss terms that all pull equally hard in each layer.

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
        params: as in MTAdam.
        lr: learning rate, with its usual meaning for Adam.
        betas: decay of the first moment, of the second moment, and of the running norms, each in [0, 1).
        eps: added to the denominator.
        weight_decay: added to the sum as ``weight_decay * p``. The sum has a size of its own, whatever the losses' is:
            with ``decoupled_weight_decay=True`` the decay has its usual meaning, that of AdamW.
        amsgrad: bound by the largest second moment so far.
        maximize: maximize the losses.
        decoupled_weight_decay: apply ``weight_decay`` to the parameter, before the step (as AdamW does).
        term_weights: how hard each term pulls, as a mapping from names to numbers or a sequence in the terms' order;
            default 1 for each.
        norm_init: as in MTAdam.
        anchor: as in MTAdam.
        norms: as in MTAdam.
        second_moments: as in MTAdam.
        keep_combined_grad: leave the combined gradient in ``p.grad`` after a step, as in MTAdam.
        check_finite: refuse a step whose gradients are not all finite, as in MTAdam.
        backend: as in MTAdam.
        process_group: average each term's gradients over these processes, as in MTAdam.
        terms: names of the loss terms, in their order, as in MTAdam.

    Raises:
        ValueError, TypeError, RuntimeError: as in MTAdam.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.9, 0.999, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        term_weights: TermWeights = None,
        norm_init: str = "first_step",
        anchor: Term = "none",
        norms: str = "decaying_peak",
        second_moments: str = "shared",
        keep_combined_grad: bool = False,
        check_finite: bool = False,
        backend: str | Backend = "auto",
        process_group: "ProcessGroup | None" = None,
        terms: Iterable[Term] | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
            term_weights=term_weights,
            norm_init=norm_init,
            anchor=anchor,
            norms=norms,
            second_moments=second_moments,
            keep_combined_grad=keep_combined_grad,
            check_finite=check_finite,
            backend=backend,
            process_group=process_group,
            terms=terms,
        )
