"""Several losses in a transformers.Trainer. Tested with transformers 5.24."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..gradients.losses import Losses, divide_losses, sum_losses
from .unwrap import check_order, need_term_optimizer, refuse_scaler, without_sync


class TermLosses:
    """Mixin of a Trainer that says in :meth:`compute_losses` what its losses are. ::

        class AuxiliaryTrainer(TermLosses, Trainer):
            def compute_losses(self, model, inputs):
                outputs = model(**inputs)
                return {"labels": outputs.loss, "count": ...}, outputs

        optimizer = BalancedAdam(model.named_parameters(), process_group=torch.distributed.group.WORLD)
        trainer = AuxiliaryTrainer(model, args, train_dataset=..., optimizers=(optimizer, scheduler))

    ``gradient_accumulation_steps`` and ``max_grad_norm`` work: the latter calls ``clip_grad_norm_`` of the optimizer.
    In several processes give the optimizer the ``process_group``, as above; it is None in one. With mixed precision use
    ``bf16=True``.
    """

    args: Any
    accelerator: Any
    optimizer: Any
    current_gradient_accumulation_steps: int

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the order of the bases.

        Raises:
            TypeError: the framework's class comes before this one.
        """
        super().__init_subclass__(**options)
        check_order(cls, TermLosses, "training_step")

    def compute_losses(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Losses, Any]:
        """Return scalar losses, as the optimizer's ``backward`` takes them, and the model's outputs; yours to write."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_losses(model, inputs)")

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the sum of the losses, for evaluation."""
        losses, outputs = self.compute_losses(model, inputs)
        total = sum_losses(losses)
        return (total, outputs) if return_outputs else total

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Give the losses of a batch to the optimizer, and return their sum.

        Raises:
            TypeError: the optimizer is not one of this package.
            RuntimeError: the Trainer has a GradScaler or another version's way to clip, or in several processes the
                optimizer has no ``process_group``.
        """
        self._check_clipping()
        refuse_scaler(self.accelerator.scaler, "use TrainingArguments(bf16=True)")
        optimizer, parts = need_term_optimizer(self.optimizer), self.current_gradient_accumulation_steps
        model.train()
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        with without_sync(model, optimizer):
            with self.compute_loss_context_manager():  # type: ignore[attr-defined]
                losses, _ = self.compute_losses(model, inputs)
            return optimizer.backward(divide_losses(losses, parts))

    def _check_clipping(self) -> None:
        """Raise RuntimeError where this Trainer would never call what clips the gradients."""
        if self.args.max_grad_norm > 0 and not hasattr(super(), "_clip_grad_norm"):
            raise RuntimeError(
                f"max_grad_norm is {self.args.max_grad_norm}, and this version of transformers clips p.grad, where no "
                "gradients are; use transformers 5.24, or max_grad_norm=0 and optimizer.clip_grad_norm_() in a "
                "callback's on_pre_optimizer_step"
            )

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip what waits in the optimizer; return one norm, to be logged."""
        found = need_term_optimizer(self.optimizer).clip_grad_norm_(self.args.max_grad_norm)
        return torch.stack(list(found.values())).norm() if isinstance(found, dict) else found

    def _get_grad_norm(self, model: Any, grad_norm: Tensor | None = None) -> Tensor | None:
        """Return the norm before clipping, to be logged; None where nothing is clipped."""
        return grad_norm
