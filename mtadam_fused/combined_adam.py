"""The CombinedAdam optimizer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .backends import Backend
from .gradients.clipping import check_max_norm, check_norms, clip_factors
from .gradients.collector import check_inputs
from .hyperparameters import Hyperparameters, Term
from .optimizer import TermOptimizer
from .rules import Rule
from .rules.probe import ParameterProbe, sum_gram
from .rules.weigh import ask, weigh, weighted_sum
from .tables.layout import StateLayout, TermGradients, device_of
from .tables.param_table import ParamTable
from .tables.step_args import StepArgs
from .telemetry import Pair, PerParam, Reading, read_cosines

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


PASSES = ("auto", "per_term")


class CombinedAdam(TermOptimizer):
    """Adam on a weighted sum of the loss terms' gradients, with weights that a rule finds anew at each step.

    Each step gives the rule the dot products of the terms' gradients and the losses, and makes the step of
    torch.optim.Adam on the sum of the gradients times the rule's weights. ::

        optimizer = CombinedAdam(model.parameters(), PCGrad(), lr=1e-3)
        for batch in loader:
            losses = {"depth": ..., "normals": ...}
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()

    A rule looks at the gradients of the parameters that every term of the step reaches, the shared ones, or of all if
    none is shared; unless it names others. A rule that names its ``parameters``, or looks at no
    gradient, is asked in :meth:`backward`: that then makes one backward pass of the weighted sum, and holds one
    gradient. Other rules, :meth:`term`, and ``inputs=`` without the rule's ``parameters`` take a pass per term.

    Parameters that only some terms reach are stepped on the sum over those terms, with the same weights. The state of a
    parameter is that of torch.optim.Adam, 8 bytes per element, in float32 also for 16-bit parameters, in float64 for
    float64.

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
        passes: "auto", one backward pass where the step is the same; or "per_term", always a pass per term, as gradient
            accumulation and a GradScaler need for rules with ``parameters``.
        keep_combined_grad: leave the weighted sum of the gradients in ``p.grad`` after a step, at the cost of memory
            for one gradient; else ``p.grad`` is None then.
        check_finite: refuse a step whose gradients are not all finite, at the cost of reading them once more and of
            waiting for the device.
        backend: "auto" (the best for each device), "cuda", "cuda-one-launch" (here no different from "cuda"), "triton"
            (for GPUs where the CUDA kernels are not built; on the CPU in its interpreter, where TRITON_INTERPRET=1 is
            set), "cpu", "reference", or an object such as those of ``mtadam_fused.backends``.
        process_group: average each term's gradients over the processes of this group, such as
            ``torch.distributed.group.WORLD`` (which is None before ``init_process_group``). All processes must give the
            same terms, which reach the same parameters, in the same order: a difference is an error where a term is new
            in all of them; later it can hang, or mix different terms. Under DistributedDataParallel run forward and
            backward passes in its ``no_sync()``. A loss may then be infinite or NaN: no process must leave one out
            alone. Gradients of parameters that are sharded over these processes are left to what has sharded them.
            None: gradients are not averaged; losses are, if parameters are sharded.
        terms: names of the loss terms, in their order; others are then an error. Default: the order in which they come.

    Raises:
        ValueError: a hyper-parameter out of its range, no such backend or ``passes``, or a rule about parameters that
            are not among ``params``.
        TypeError: parameters that are not dense and real, a ``rule`` that is not a Rule, or a ``process_group`` that
            this process is not in.
        RuntimeError: the backend asked for cannot serve the parameters here.
    """

    hyperparameters: ClassVar[type[Hyperparameters]] = Hyperparameters

    @torch._disable_dynamo  # a graph break in torch's __init__ would lose the attributes set before it
    def __init__(
        self,
        params: Any,
        rule: Rule,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        passes: str = "auto",
        keep_combined_grad: bool = False,
        check_finite: bool = False,
        backend: str | Backend = "auto",
        process_group: "ProcessGroup | None" = None,
        terms: Iterable[Term] | None = None,
    ) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"rule is {rule!r}; it must be an object of mtadam_fused.rules, such as PCGrad()")
        if passes not in PASSES:
            raise ValueError(f"passes is {passes!r}; it must be one of {', '.join(PASSES)}")
        self.rule = rule
        self.passes = passes
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
            terms=terms,
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
            For each term a scalar; empty before the first step. That of a term that was absent from the step means
            nothing.
        """
        return dict(zip(self.terms, self._weights.unbind(), strict=False))

    def term_cosines(self) -> dict[Pair, PerParam]:
        """Return the cosines between the terms' gradients, parameter by parameter.

        They come from the dot products that the last step has made for the rule: of the parameters that it looks at, in
        one backward pass too; of all, if :meth:`clip_grad_norm_` was called. Read them before the next
        :meth:`backward`.

        Returns:
            For each pair of terms, ``("depth", "normals")``, a float64 tensor of [number of parameters], NaN where
            either gradient was absent or zero, or nothing has looked; or, if the optimizer was made from
            ``model.named_parameters()``, a dict from names to scalar tensors.
        """
        return self._read_cosines().by_key(self._params(), self._param_names())

    def _read_cosines(self) -> Reading:
        return read_cosines(*self._looked_at, self.terms, self._params())

    def _readings(self) -> dict[str, Reading]:
        """Return what a Recorder keeps of the last step."""
        weights = Reading(self.terms[: len(self._weights)], [([0], self._weights.clone().unsqueeze(0))])
        return {"weight": weights, "cosine": self._read_cosines()}

    def _reset(self) -> None:
        super()._reset()
        self._probe: ParameterProbe | None = None
        # The tables whose dot products are of the last step, and the positions of their terms.
        self._looked_at: tuple[list[ParamTable], list[int]] = [], []

    def __repr__(self) -> str:
        passes = "one backward pass for all terms" if self.takes_one_pass else "a backward pass per term"
        return f"{super().__repr__()}\n{passes}"

    # -- one backward pass ---------------------------------------------------------------------------------------------

    @property
    def takes_one_pass(self) -> bool:
        """Whether :meth:`backward` makes one backward pass for all terms."""
        if self.passes == "per_term":
            return False
        # To autograd, parameters that FSDP2 has sharded are not in the graph.
        return not self.rule.needs_gram or (self.rule.parameters is not None and not self._communicator.has_shards)

    def _differentiate(
        self, losses: Mapping[Term, Tensor], terms: list[Term], retain_graph: bool, inputs: Sequence[Tensor] | None
    ) -> None:
        waits_apart = bool(self._collector) and not self._collector.is_sum
        self._check_more()
        if not self.takes_one_pass or waits_apart or not self._looks_inside(inputs):
            self._refuse_weighted("passes of single terms")
            return super()._differentiate(losses, terms, retain_graph, inputs)
        if self._looks_at_batch:
            self._refuse_weighted("another call of backward()")
        looks_at = self.rule.parameters
        if looks_at is not None and not (self._probe and self._probe.is_of(looks_at)):
            self._probe = ParameterProbe(looks_at, self.backend)
        weights = weigh(self.rule, losses, terms, self._probe, self._communicator)
        looked = self._probe.tables if self._probe is not None and self.rule.needs_gram else []
        self._looked_at = looked, [terms.index(term) for term in losses]
        self._collector.weights, self._collector.is_sum = weights, True
        total = weighted_sum([(weights[terms.index(term)], loss) for term, loss in losses.items()])
        torch.autograd.backward(total, retain_graph=retain_graph, inputs=inputs)
        check_inputs(inputs or ())
        self._collector.take(0, tuple(losses), self._params(), None)

    def _looks_inside(self, inputs: Sequence[Tensor] | None) -> bool:
        """Return whether all that the rule looks at is among ``inputs``."""
        if inputs is None or not self.rule.needs_gram:
            return True
        return set(map(id, self.rule.parameters or ())) <= set(map(id, inputs))

    @property
    def _looks_at_batch(self) -> bool:
        return self.rule.needs_gram or self.rule.needs_losses

    def _refuse_weighted(self, what: str) -> None:
        """Raise RuntimeError if the gradients that wait are a weighted sum already."""
        if self._collector.is_sum:
            raise RuntimeError(
                f"{self.rule!r} has weighted the gradients of the last backward(), and they cannot be combined with "
                f"{what}; call step() or zero_grad() first, or make the optimizer with passes='per_term'"
            )

    # -- the step ------------------------------------------------------------------------------------------------------

    def _check_terms(self, terms: Sequence[Term], *, allow_more: bool) -> None:
        self.rule.check_terms(terms, allow_more=allow_more)

    def _check_more(self) -> None:
        if self._collector.clip_factor is not None:
            raise RuntimeError(
                f"clip_grad_norm_() has clipped the gradients as {self.rule!r} combines them, so no more can be added; "
                "call it after the last backward(), or call step() or zero_grad() first"
            )

    def _check_term_block(self) -> None:
        self._check_more()
        self._refuse_weighted("those of a term() block")

    @property
    def _needs_losses(self) -> bool:
        return self.rule.needs_losses

    @property
    def _takes_grad_scale(self) -> bool:
        # A step that is not made must leave the rule's state as it was, which only the rule could do on the device.
        return super()._takes_grad_scale and type(self.rule).state_dict is Rule.state_dict

    def _check_unscale(self) -> None:
        if self._looks_at_batch:
            self._refuse_weighted("a GradScaler, whose scale the rule has seen")

    def _check_step(self, grads: TermGradients) -> None:
        self.rule.check_terms(self.terms, allow_more=False)
        if self._collector.is_sum:
            return
        for k, (term, row) in enumerate(zip(self.terms, grads, strict=True)):
            if self.rule.needs_losses and k not in self._collector.losses and any(g is not None for g in row):
                raise RuntimeError(
                    f"{self.rule!r} needs the loss of term {term!r}; pass it, as in "
                    "`with optimizer.term(name, loss):`, or use optimizer.backward(losses)"
                )

    def _ask(self, steps: Sequence[StepArgs]) -> None:
        if self._collector.weights is None:
            gram = self._gram(steps)
            if (found_inf := self._collector.found_inf) is not None:  # no rule has to take what is not finite
                gram = gram.where(found_inf.to(gram.device) == 0, 0.0)
            self._collector.weights = self._ask_rule(gram)
        self._weights = self._collector.weights
        scales = self._scales(self._weights)
        for args in steps:
            args.table.scales.copy_(scales.expand_as(args.table.scales), non_blocking=True)

    def _update(self, steps: Sequence[StepArgs]) -> None:
        for args in steps:
            self._backends[args.table.device].combined_adam(args)

    def _ask_rule(self, gram: Tensor) -> Tensor:
        return ask(self.rule, gram, self._collector.losses, self._communicator)

    def _scales(self, weights: Tensor) -> Tensor:
        """Return ``[K]``: what the gradients that wait are multiplied by, given the rule's ``weights``."""
        scales = torch.ones_like(weights) if self._collector.is_sum else weights
        factor = self._collector.clip_factor
        return scales if factor is None else scales * factor.to(scales.device)

    @torch._disable_dynamo
    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, *, error_if_nonfinite: bool = False) -> Tensor:
        """Clip the combined gradient, which the next step is made with, to a total norm of ``max_norm``.

        Call it after the last :meth:`backward` of a step, and after ``scaler.unscale_(optimizer.scaled)``. It asks the
        rule for its weights, which :meth:`step` then uses; the gradients that wait are not changed. The norm comes from
        the terms' dot products, over all parameters and, where they are sharded, over all processes.

        Args:
            max_norm: the largest norm; ``math.inf`` to measure only.
            error_if_nonfinite: raise if the norm is infinite or NaN, at the cost of waiting for the device.

        Returns:
            The norm before clipping, a float64 scalar.

        Raises:
            ValueError: a ``max_norm`` that is not a number of at least 0.
            RuntimeError: a norm that is not finite; what :meth:`step` raises. Nothing has changed.
        """
        check_max_norm(max_norm)
        collector = self._collector
        if not collector:
            return torch.zeros((), dtype=torch.float64, device=device_of(self._params()))
        steps = self._prepare_steps()
        gram = sum_gram(steps, self._backends, len(self.terms), steps[0].table.device)
        if not collector.is_sum:
            self._look_at(steps)
        if collector.weights is None:
            collector.weights = self._ask_rule(self._probed_part(steps, gram))
        # Weights of absent terms may be anything.
        scales = self._scales(collector.weights.to(gram)).where(gram.diagonal() != 0, 0.0)
        norm = (scales @ gram @ scales).clamp(min=0.0).sqrt()
        if error_if_nonfinite:
            check_norms(norm, "the combined gradient")
        factor = clip_factors(norm, max_norm)
        collector.clip_factor = factor if collector.clip_factor is None else collector.clip_factor * factor
        return norm

    def _gram(self, steps: Sequence[StepArgs]) -> Tensor:
        """Return the [K, K] dot products of the gradients over the parameters that the rule looks at."""
        probed = []
        if self.rule.needs_gram:
            for args, rows in zip(steps, self._probed_rows(steps), strict=True):
                if not all(rows):
                    grads = [[g if keep else None for g, keep in zip(of, rows, strict=True)] for of in args.grads]
                    args = replace(args, grads=grads)
                if any(rows):
                    probed.append(args)
        self._look_at(probed)
        return sum_gram(probed, self._backends, len(self.terms), steps[0].table.device)

    def _probed_part(self, steps: Sequence[StepArgs], gram: Tensor) -> Tensor:
        """Return what :meth:`_gram` does, from the tables' dot products of all parameters, whose sum is ``gram``."""
        if not self.rule.needs_gram:
            return torch.zeros_like(gram)
        rows = self._probed_rows(steps)
        if all(map(all, rows)):
            return gram.clone()  # a rule may write to it
        part = torch.zeros_like(gram)
        for args, of_table in zip(steps, rows, strict=True):
            is_probed = torch.tensor(of_table, device="cpu").to(args.table.device, non_blocking=True)
            part += args.table.gram.where(is_probed[:, None, None], 0.0).sum(dim=0).to(gram.device)
        return part

    def _look_at(self, steps: Sequence[StepArgs]) -> None:
        """Note that the tables' dot products are those of this step."""
        self._looked_at = [args.table for args in steps], list(range(len(self.terms)))

    def _probed_rows(self, steps: Sequence[StepArgs]) -> list[list[bool]]:
        """Return for each table which rows the rule looks at.

        Those it names; else those that all terms reach; and if there are none, all.
        """
        if self.rule.parameters is not None:
            named = set(map(id, self.rule.parameters))
            return [[id(p) in named for p in args.table.params] for args in steps]
        present = [k for k in range(len(self.terms)) if any(g is not None for args in steps for g in args.grads[k])]
        shared = [
            [all(g is not None for g in of_row) for of_row in zip(*(args.grads[k] for k in present), strict=True)]
            for args in steps
        ]
        return shared if any(map(any, shared)) else [[True] * len(args.table.params) for args in steps]

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return state and parameter groups as in torch.optim. Every group has the rule's state under ``"rule"``."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group["rule"] = self.rule.state_dict()
        return saved

    def _check_loaded(self, groups: Sequence[Mapping[str, Any]]) -> None:
        for group in groups:
            saved, own = group.get("rule"), self.rule.state_dict()
            if saved is not None and saved.keys() != own.keys():
                raise ValueError(
                    f"the saved state of the rule has {list(saved)}, that of {self.rule!r} has {list(own)}; load it "
                    "into an optimizer with the same rule"
                )

    def __getstate__(self) -> dict[str, Any]:
        own = ("rule", "passes", "_weights")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    @torch._disable_dynamo  # as __init__
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        saved = self.param_groups[0].get("rule")
        if isinstance(saved, Mapping):
            self.rule.load_state_dict(saved)
        for group in self.param_groups:
            group["rule"] = self.rule
