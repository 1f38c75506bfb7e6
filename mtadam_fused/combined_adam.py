"""The CombinedAdam optimizer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .backends import Backend
from .hyperparameters import Hyperparameters, Term
from .optimizer import TermOptimizer
from .rules import Rule
from .tables.layout import StateLayout, TermGradients
from .tables.step_args import StepArgs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class CombinedAdam(TermOptimizer):
    """Adam on a weighted sum of the loss terms' gradients, with weights that a rule finds anew at each step.

    Each step takes the gradient of every term apart, gives the rule their dot products and the losses, and makes the
    step of torch.optim.Adam on the sum of the gradients times the rule's weights. ::

        optimizer = CombinedAdam(model.parameters(), PCGrad(), lr=1e-3)
        for batch in loader:
            losses = {"depth": ..., "normals": ...}
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()

    A rule looks at the gradients of the parameters that every term of the step reaches, the shared ones, unless it
    names others; where no parameter is shared it sees zeros. Parameters that only some terms reach are stepped on the
    sum over those terms, with the same weights. The state of a parameter is that of torch.optim.Adam, 8 bytes per
    element, in float32 also for 16-bit parameters, in float64 for float64.

    Args:
        params: parameters, or dicts of parameter groups; a group can override everything from ``lr`` to
            ``decoupled_weight_decay``. They may be DTensors, as from FSDP2: then dot products are of the
            full gradients, and the state is sharded too.
        rule: how to weight the terms: an object of :mod:`mtadam_fused.rules`, or of a subclass of its ``Rule``. Its
            state is saved with the optimizer's.
        lr: learning rate; a number, or a Tensor of one element.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: added to the denominator.
        weight_decay: added to the combined gradient as ``weight_decay * p``, as torch.optim.Adam does.
        amsgrad: bound by the largest second moment so far.
        maximize: maximize the losses.
        decoupled_weight_decay: apply ``weight_decay`` to the parameter, before the step (as AdamW does).
        keep_combined_grad: leave the weighted sum of the gradients in ``p.grad`` after a step, at the cost of memory
            for one gradient; else ``p.grad`` is None then.
        check_finite: refuse a step whose gradients are not all finite, at the cost of reading them once more and of
            waiting for the device.
        backend: "auto" (the best for each device), "cuda", "cuda-one-launch" (the whole step in one launch instead of
            three), "triton" (for GPUs where the CUDA kernels are not built; on the CPU in its interpreter, where
            TRITON_INTERPRET=1 is set), "cpu", "reference", or an object such as those of ``mtadam_fused.backends``.
        process_group: average each term's gradients over the processes of this group, such as
            ``torch.distributed.group.WORLD`` (which is None before ``init_process_group``). All processes must give the
            same terms, which reach the same parameters, in the same order: a difference is an error where a term is new
            in all of them; later it can hang, or mix different terms. Under DistributedDataParallel run forward and
            backward passes in its ``no_sync()``. A loss may then be infinite or NaN: no process must leave one out
            alone. Gradients of parameters that are sharded over these processes are left to what has sharded them.
            None: gradients are not averaged; losses are, if parameters are sharded.

    Raises:
        ValueError: a hyper-parameter out of its range, no such backend, or a rule about parameters that are not among
            ``params``.
        TypeError: parameters that are not dense and real, a rule that is none, or a ``process_group`` that this process
            is not in.
        RuntimeError: the backend asked for cannot serve the parameters here.
    """

    hyperparameters: ClassVar[type[Hyperparameters]] = Hyperparameters

    def __init__(
        self,
        params: Any,
        rule: Rule,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        keep_combined_grad: bool = False,
        check_finite: bool = False,
        backend: str | Backend = "auto",
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"rule is {rule!r}; it must be an object of mtadam_fused.rules, such as PCGrad()")
        self.rule = rule
        self._weights = torch.empty(0)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "rule": rule,  # so that flattened checkpoints have a place for its state
        }
        super().__init__(
            params,
            defaults,
            state_layout=StateLayout(has_norms=False, per_term=False),
            keep_combined_grad=keep_combined_grad,
            check_finite=check_finite,
            backend=backend,
            process_group=process_group,
        )
        known = set(map(id, self._params()))
        for i, p in enumerate(rule.parameters or ()):
            if id(p) not in known:
                raise ValueError(
                    f"the rule's parameters[{i}], of shape {tuple(p.shape)}, is not among params; give the rule "
                    "parameters that the optimizer has"
                )

    def last_weights(self) -> dict[Term, Tensor]:
        """Return the rule's weights of the last step.

        Returns:
            For each term a scalar; empty before the first step.
        """
        return dict(zip(self.terms, self._weights.unbind(), strict=False))

    # -- the step ------------------------------------------------------------------------------------------------------

    def _check_terms(self, terms: Sequence[Term], *, allow_more: bool) -> None:
        self.rule.check_terms(terms, allow_more=allow_more)

    def _check_step(self, grads: TermGradients) -> None:
        self.rule.check_terms(self.terms, allow_more=False)
        for k, (term, row) in enumerate(zip(self.terms, grads, strict=True)):
            if self.rule.needs_losses and k not in self._collector.losses and any(g is not None for g in row):
                raise RuntimeError(
                    f"{self.rule!r} needs the loss of term {term!r}; pass it, as in "
                    "`with optimizer.term(name, loss):`, or use optimizer.backward(losses)"
                )

    def _update(self, steps: Sequence[StepArgs]) -> None:
        weights = self.rule(self._gram(steps), self._losses(steps[0].table.device))
        if not isinstance(weights, Tensor) or weights.shape != (len(self.terms),):
            given = f"of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"{weights!r}"
            raise ValueError(
                f"{self.rule!r} gave weights {given}; it must give a tensor with one for each of the "
                f"{len(self.terms)} terms"
            )
        if self._communicator:
            # A rule may draw random numbers, so all processes use the first one's weights.
            weights = self._communicator.broadcast_first(weights.to(steps[0].table.device))
        self._weights = weights
        for args in steps:
            args.table.scales.copy_(weights.expand_as(args.table.scales), non_blocking=True)
            self._backends[args.table.device].combined_adam(args)

    def _gram(self, steps: Sequence[StepArgs]) -> Tensor:
        """Return the [K, K] dot products of the gradients over the parameters that the rule looks at."""
        device, terms = steps[0].table.device, len(self.terms)
        gram = torch.zeros(terms, terms, dtype=torch.float64, device=device)
        if not self.rule.needs_gram:
            return gram
        for args, probed in zip(steps, self._probed_rows(steps), strict=True):
            if any(probed):
                if not all(probed):
                    grads = [[g if keep else None for g, keep in zip(row, probed, strict=True)] for row in args.grads]
                    args = replace(args, grads=grads)
                self._backends[args.table.device].term_gram(args)
                gram += args.table.sum_over_rows(args.table.gram).to(device)
        return gram

    def _probed_rows(self, steps: Sequence[StepArgs]) -> list[list[bool]]:
        """Return for each table which rows the rule looks at: those it names, or those that all terms reach."""
        if self.rule.parameters is not None:
            named = set(map(id, self.rule.parameters))
            return [[id(p) in named for p in args.table.params] for args in steps]
        present = [k for k in range(len(self.terms)) if any(g is not None for args in steps for g in args.grads[k])]
        return [
            [all(g is not None for g in of_row) for of_row in zip(*(args.grads[k] for k in present), strict=True)]
            for args in steps
        ]

    def _losses(self, device: torch.device) -> Tensor:
        """Return the [K] float64 losses, NaN where unknown."""
        losses = torch.full((len(self.terms),), torch.nan, dtype=torch.float64, device=device)
        if self.rule.needs_losses:
            for k, loss in self._collector.losses.items():
                losses[k] = loss
            if self._communicator:
                losses = self._communicator.all_reduce_mean(losses)
        return losses

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return state and parameter groups as in torch.optim. Every group has the rule's state under ``"rule"``."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group["rule"] = self.rule.state_dict()
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            saved, own = group.get("rule"), self.rule.state_dict()
            if saved is not None and saved.keys() != own.keys():
                raise ValueError(
                    f"the saved state of the rule has {list(saved)}, that of {self.rule!r} has {list(own)}; load it "
                    "into an optimizer with the same rule"
                )
        super().load_state_dict(state_dict)

    load_state_dict.__doc__ = TermOptimizer.load_state_dict.__doc__

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"rule": self.rule, "_weights": self._weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        saved = self.param_groups[0].get("rule")
        if isinstance(saved, Mapping):
            self.rule.load_state_dict(saved)
        for group in self.param_groups:
            group["rule"] = self.rule
