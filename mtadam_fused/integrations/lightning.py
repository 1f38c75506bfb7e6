"""Several losses in a LightningModule under automatic optimization. Tested with lightning 2.6.

Manual optimization needs nothing from here: call ``self.optimizers().optimizer.backward(losses)``.
"""

from contextlib import nullcontext
from typing import Any

from torch import Tensor

from ..gradients.losses import Losses, divide_losses, sum_losses
from .unwrap import check_order, find_term_optimizer, need_term_optimizer, refuse_scaler, without_sync


class TermLosses:
    """Mixin of a LightningModule whose ``training_step`` returns ``self.term_losses({...})``. ::

        class Network(TermLosses, LightningModule):
            def training_step(self, batch, batch_idx):
                ...
                return self.term_losses({"depth": depth_loss, "normals": normals_loss})

            def configure_optimizers(self):
                return BalancedAdam(self.named_parameters(), process_group=torch.distributed.group.WORLD)

    The Trainer's ``accumulate_grad_batches`` and ``gradient_clip_val`` work: the latter calls ``clip_grad_norm_`` of
    the optimizer. In several processes (``strategy="ddp"``) give the optimizer the ``process_group``, as above; it is
    None in one. What FSDP2 shards (``ModelParallelStrategy``) needs no group. With mixed precision use
    ``precision="bf16-mixed"``. An ``optimizer_step`` of your own must call ``super().optimizer_step``.
    """

    trainer: Any
    optimizers: Any
    _losses: Losses | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the order of the bases.

        Raises:
            TypeError: the framework's class comes before this one.
        """
        super().__init_subclass__(**options)
        check_order(cls, TermLosses, "backward")

    def term_losses(self, losses: Losses) -> Tensor:
        """Keep ``losses`` for the backward pass, and return their sum, as ``training_step`` has to.

        Args:
            losses: scalar losses, as ``backward`` of the optimizer takes them.
        """
        self._losses = losses
        total = sum_losses(losses)
        return total.requires_grad_()  # Lightning wants a loss with a graph; this one is not differentiated

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Give the kept losses to the optimizer; or ``loss`` to Lightning, where ``training_step`` kept none.

        Raises:
            TypeError: the optimizer is not one of this package.
            RuntimeError: the Trainer has a GradScaler.
        """
        losses, self._losses = self._losses, None
        if losses is None:
            super().backward(loss, *args, **kwargs)  # type: ignore[misc]
            return
        refuse_scaler(getattr(self.trainer.precision_plugin, "scaler", None), "use Trainer(precision='bf16-mixed')")
        parts = self.trainer.accumulate_grad_batches
        optimizer = need_term_optimizer(self.optimizers(use_pl_optimizer=False))
        optimizer.backward(divide_losses(losses, parts))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Make the step, whose closure makes forward and backward passes, without a second average of the gradients.

        Raises:
            RuntimeError: in several processes the optimizer has no ``process_group``.
        """
        own = find_term_optimizer(optimizer)
        with nullcontext() if own is None else without_sync(self.trainer.model, own):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)  # type: ignore[misc]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip what waits in the optimizer, by norm; leave another package's optimizer to Lightning.

        Raises:
            ValueError: another algorithm than "norm".
        """
        own = find_term_optimizer(optimizer)
        if own is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)  # type: ignore[misc]
            return
        if not gradient_clip_val:
            return
        algorithm = getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm) or "norm"
        if algorithm != "norm":
            raise ValueError(f"gradient_clip_algorithm is {algorithm!r}; it must be 'norm'")
        own.clip_grad_norm_(gradient_clip_val)
