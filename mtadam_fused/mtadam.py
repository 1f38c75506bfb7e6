"""The MTAdam optimizer."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .anchor_watch import AnchorWatch
from .backends import Backend
from .gradients.clipping import check_max_norm, check_norms, clip_factors
from .hyperparameters import (
    Hyperparameters,
    MTAdamHyperparameters,
    Term,
    TermWeights,
    anchor_code,
    weights_of,
)
from .optimizer import TermOptimizer
from .tables.layout import StateLayout, TermGradients, device_of
from .tables.step_args import StepArgs
from .telemetry import PerParam, Reading, read_columns

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


SECOND_MOMENTS = ("per_term", "shared")


class MTAdam(TermOptimizer):
    """Adam for several loss terms, balanced layer by layer (Malkiel and Wolf, arXiv 2006.14683).

    Each step takes the gradient of every term separately. In each layer it brings the terms' running gradient norms to
    that of the anchor: of the first term, in the order of :attr:`terms`, that has reached the layer. It keeps a second
    moment per term, and the largest of them divides the step: K terms that agree take a step of up to K times ``lr``.
    With one term it is torch.optim.Adam. These defaults are the published rule; they want an anchor that keeps a
    gradient until the end. :class:`mtadam_fused.BalancedAdam` is this class with defaults that need none. ::

        optimizer = MTAdam(model.parameters(), lr=1e-3)
        for batch in loader:
            losses = {"reconstruction": ..., "adversarial": ...}
            optimizer.zero_grad()
            optimizer.backward(losses)
            optimizer.step()

    A constant factor on a loss changes the balance of no layer: use ``term_weights`` to make a term pull harder.

    The state of a parameter is ``step``, ``norm_avg`` ([K] running norms), ``exp_avg``, and ``exp_avg_sq{k}`` for each
    term k that has reached it: 4K + 4 bytes per element, in float32 also for 16-bit parameters, in float64 for float64.
    With ``second_moments="shared"`` it has one ``exp_avg_sq``: 8 bytes.

    Args:
        params: parameters, or dicts of parameter groups; a group can override everything from ``lr`` to ``norms``.
            They may be DTensors, as from FSDP2: then norms are of the full gradients, and the state is sharded too.
        lr: learning rate; a number, or a Tensor of one element.
        betas: decay of the first moment, of the second moments, and of the running norms, each in [0, 1).
        eps: added to the denominator.
        weight_decay: the published L2 form: ``weight_decay * p`` is added to each term's balanced gradient, so once per
            term.
        amsgrad: bound by the largest second moment so far.
        maximize: maximize the losses.
        decoupled_weight_decay: apply ``weight_decay`` once, to the parameter, before the step (as AdamW does).
        term_weights: a weight per term on top of the balance, as a mapping from names to numbers or a sequence in the
            terms' order ("ranks" in the published code); default 1 for each.
        norm_init: where a running norm starts: "first_step", at the first gradient, zero or not (published); or
            "first_nonzero", at the first whose norm is above 1e-10. The latter deviates from the publication: there a
            term whose first gradient is zero has too small a running norm, and too large a scale, for some steps.
        anchor: what the running norms of a layer's terms are brought to: that of the "first" term with a gradient there
            (published); "none", to 1; their "geometric_mean"; or that of the term of this name (the geometric mean
            where it has no gradient); give ``terms`` if that term is not in the first :meth:`backward`. A term that is
            itself named "first", "none" or "geometric_mean" cannot be named here. Only "first" depends on the order of
            the terms. Without an anchor constant factors on the losses do not matter; with one they become a common
            factor on all scales, which Adam cancels but for ``eps``, L2 decay and terms that come and go. A running
            norm of at most 1e-10 counts as no gradient: it is no anchor, and its term's scale is 1, whatever its
            weight.
        norms: what a running norm is: the "average" with decay ``betas[2]`` (published); the average "corrected" for
            its start, as Adam's moments are; the "peak", the largest norm so far; or the "decaying_peak", the larger of
            the present norm and ``betas[2]`` times the last running norm (as Adamax remembers gradients). With a peak
            no gradient is ever scaled to more than its term's share.
        second_moments: "per_term", of which the largest divides the step (published); or "shared", one of the sum of
            the balanced gradients, as in Adam. L2 weight decay is then added once.
        keep_combined_grad: leave the sum of the balanced gradients in ``p.grad`` after a step, at the cost of memory
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
        terms: names of the loss terms, in their order; others are then an error. Default: the order in which they come.

    A warning says, once, that the anchor's running norm has fallen below 1e-3 of its peak.

    Raises:
        ValueError: a hyper-parameter out of its range, no such backend, or ``terms`` that it does not fit.
        TypeError: parameters that are not dense and real, or a ``process_group`` that this process is not in.
        RuntimeError: the backend asked for cannot serve the parameters here.
    """

    hyperparameters: ClassVar[type[Hyperparameters]] = MTAdamHyperparameters

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor, float | Tensor] = (0.9, 0.999, 0.9),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        term_weights: TermWeights = None,
        norm_init: str = "first_step",
        anchor: Term = "first",
        norms: str = "average",
        second_moments: str = "per_term",
        keep_combined_grad: bool = False,
        check_finite: bool = False,
        backend: str | Backend = "auto",
        process_group: "ProcessGroup | None" = None,
        terms: Iterable[Term] | None = None,
    ) -> None:
        if second_moments not in SECOND_MOMENTS:
            raise ValueError(f"second_moments is {second_moments!r}; it must be one of {', '.join(SECOND_MOMENTS)}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "term_weights": term_weights,
            "norm_init": norm_init,
            "anchor": anchor,
            "norms": norms,
        }
        super().__init__(
            params,
            defaults,
            state_layout=StateLayout(has_norms=True, per_term=second_moments == "per_term"),
            terms=terms,
            keep_combined_grad=keep_combined_grad,
            check_finite=check_finite,
            backend=backend,
            process_group=process_group,
        )

    def _reset(self) -> None:
        super()._reset()
        self._anchor_watch = AnchorWatch()

    def _check_terms(self, terms: Sequence[Term], *, allow_more: bool) -> None:
        for group in self.param_groups:
            weights_of(group["term_weights"], terms, allow_more=allow_more)
            if not allow_more:
                anchor_code(group["anchor"], terms)

    def _update(self, steps: Sequence[StepArgs]) -> None:
        for args in steps:
            kernels = self._backends[args.table.device]
            if args.table.has_shards:
                kernels.term_norms(args)
                args.table.all_reduce_norms()
                kernels.balance(args)
                kernels.mtadam_update(args)
            else:
                kernels.mtadam_step(args)
        self._anchor_watch.look(steps)

    @torch._disable_dynamo
    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, *, error_if_nonfinite: bool = False) -> dict[Term, Tensor]:
        """Clip the gradient of each term to a total norm of ``max_norm``, in place, before it is balanced.

        Call it after the last :meth:`backward` of a step, and after ``scaler.unscale_(optimizer.scaled)``. The norms
        are over all parameters and, where they are sharded, over all processes. The balance divides by running norms:
        so clipping bounds what one batch can do, not the size of a step.

        Args:
            max_norm: the largest norm; ``math.inf`` to measure only.
            error_if_nonfinite: raise if a norm is infinite or NaN, at the cost of waiting for the device.

        Returns:
            For each term its norm before clipping, a float64 scalar; 0 where the term has no gradient.

        Raises:
            ValueError: a ``max_norm`` that is not a number of at least 0.
            RuntimeError: a norm that is not finite; what :meth:`step` raises. Nothing has changed.
        """
        check_max_norm(max_norm)
        if not self._collector:
            return {term: torch.zeros((), dtype=torch.float64, device=device_of(self._params())) for term in self.terms}
        steps = self._prepare_steps()
        device = steps[0].table.device
        squares = torch.zeros(len(self.terms), dtype=torch.float64, device=device)
        for args in steps:
            self._backends[args.table.device].term_norms(args)
            squares += args.table.sum_over_rows(args.where_present(args.table.norms.double().square())).to(device)
        norms = squares.sqrt()
        if error_if_nonfinite:
            check_norms(norms, f"the gradients of the terms {list(self.terms)}")
        for k, factor in enumerate(clip_factors(norms, max_norm)):
            self._collector.scale_(k, factor)
        return dict(zip(self.terms, norms, strict=True))

    # -- telemetry -----------------------------------------------------------------------------------------------------

    def running_norms(self) -> dict[Term, PerParam]:
        """Return the terms' running gradient norms after the last step.

        Returns:
            For each term a tensor of [number of parameters], NaN where the term has not reached the parameter; or, if
            the optimizer was made from ``model.named_parameters()``, a dict from names to scalar tensors.
        """
        (norms,) = self._read("norm_avg")
        return norms.by_key(self._params(), self._param_names())

    def term_scales(self) -> dict[Term, PerParam]:
        """Return the scale applied to each term's gradient in the last step; see :meth:`running_norms`.

        For a term that was absent it is the scale that it would have had. NaN before the first step after the start or
        :meth:`load_state_dict`.
        """
        (scales,) = self._read("scales")
        return scales.by_key(self._params(), self._param_names())

    def _read(self, *names: str) -> list[Reading]:
        """Read these values of the tables, which are brought up to date with the state first."""
        no_grads: TermGradients = [[None] * len(self._params()) for _ in self.terms]
        tables = self._table_cache.get(self.param_groups, self.state, no_grads, self._select_backends)
        return [read_columns(tables, name, self.terms) for name in names]

    def _readings(self) -> dict[str, Reading]:
        """Return what a Recorder keeps of the last step."""
        scales, norms = self._read("scales", "norm_avg")
        return {"scale": scales, "running_norm": norms}
