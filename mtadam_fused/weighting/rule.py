"""A rule on gradients as a weighting of losses."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends import Backend
from ..distributed.communicator import Communicator
from ..distributed.dtensor import is_dtensor
from ..gradients.compiled import explain_donated_buffers
from ..gradients.losses import Losses, named_losses
from ..hyperparameters import Term, TermWeights
from ..rules import Rule
from ..rules.probe import FeatureProbe, ParameterProbe
from ..rules.rule import list_parameters
from ..rules.weigh import weigh
from .base import Weighting

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RuleWeighting(Weighting):
    """sum_k sg(c_k) L_k with the weights c_k of a rule of :mod:`mtadam_fused.rules`, sg() held constant. ::

        weighting = RuleWeighting(PCGrad(), parameters=model.shared[-1].parameters())
        weighting({"depth": depth, "normals": normals}).backward()

        z = encoder(inputs)
        weighting(losses_of(z), features=z).backward()

    The rule looks at the gradients of the losses with respect to a few tensors: ``parameters``, such as those of the
    last layer that all terms share, or ``features`` that all terms are computed from (MGDA-UB of Sener and Koltun,
    arXiv 1810.04650). A call makes a backward pass per term down to these tensors. The one backward pass of the total
    is yours, with any optimizer, clipping, GradScaler, DistributedDataParallel or gradient accumulation.

    With a GradScaler, scale the total, ``scaler.scale(weighting(losses)).backward()``: GradNorm and the rules that
    divide by norms must see unscaled losses.

    Weights are kept from call to call. In ``eval()`` mode, without gradients, and between refreshes the last ones are
    used, at first 1. A term that has none yet makes a call a refresh. The extra state of the module holds the weights,
    the terms and the rule's own state.

    Args:
        rule: how to weight the terms.
        parameters: leaves of the graph, not sharded; default those that the rule names.
        every: refresh the weights at every so many calls in training mode.
        priorities: as in :class:`Weighting`.
        backend: of the kernels that compute dot products of parameters' gradients, as in
            :class:`mtadam_fused.CombinedAdam`.
        process_group: the processes of data-parallel training. The rule then sees the gradients of the losses averaged
            over them, and all use the same weights. All must call with the same terms.

    Raises:
        TypeError: a ``rule`` that is not a Rule, or ``parameters`` that are no tensors or sharded.
        ValueError: ``every`` is not a whole number of at least 1, ``parameters`` is empty, or bad priorities.
    """

    def __init__(
        self,
        rule: Rule,
        parameters: Tensor | Iterable[Tensor] | None = None,
        every: int = 1,
        *,
        priorities: TermWeights = None,
        backend: str | Backend = "auto",
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__(priorities=priorities)
        if not isinstance(rule, Rule):
            raise TypeError(f"rule is {rule!r}; it must be an object of mtadam_fused.rules, such as PCGrad()")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every is {every!r}; it must be a whole number of at least 1")
        self.rule = rule
        self.every = every
        self._probe = make_probe(rule.parameters if parameters is None else parameters, backend)
        self._communicator = Communicator(process_group)
        self._calls = 0
        self._weights: dict[Term, Tensor] = {}
        self._refreshed: tuple[Term, ...] = ()  # the terms that the last refresh found weights for

    def last_weights(self) -> dict[Term, Tensor]:
        """Return for each term the rule's last weight, a scalar."""
        return dict(self._weights)

    def forward(self, losses: Losses, features: Tensor | Iterable[Tensor] | None = None) -> Tensor:
        """Return the weighted sum, a scalar in the losses' dtype, but float32 for 16-bit losses.

        Args:
            losses: scalar losses, as a mapping from the terms' names or as a sequence.
            features: tensors of the graph that all losses are computed from, to look at instead of ``parameters``.

        Raises:
            TypeError: not a mapping or sequence of tensors.
            ValueError: no losses, one that is not scalar or real, terms that the rule cannot weight, no tensors for the
                rule to look at, or features without a graph; nothing has changed.
        """
        named = named_losses(losses, self.terms, need_graph=False)
        if self.training and torch.is_grad_enabled():
            self._refresh(named, features)
        return super().forward(named)

    def contributions(self, values: Tensor, terms: tuple[Term, ...]) -> Tensor:
        """Return the losses times the rule's weights; 1 where a term has none yet."""
        one = torch.ones((), dtype=values.dtype, device=values.device)
        return values * torch.stack([self._weights[term].to(one) if term in self._weights else one for term in terms])

    @torch._disable_dynamo
    def _refresh(self, losses: Mapping[Term, Tensor], features: Tensor | Iterable[Tensor] | None) -> None:
        """Ask the rule for new weights where it is time to."""
        if self._calls % self.every == 0 or not set(losses) <= set(self._refreshed):
            gram_of = self._probe if features is None else FeatureProbe(features)
            if gram_of is None and self.rule.needs_gram:
                raise ValueError(
                    f"{self.rule!r} looks at gradients, and there are neither parameters nor features; make the "
                    "weighting with parameters= of the last shared layer, or pass features="
                )
            terms = tuple(dict.fromkeys((*self._weights, *losses)))
            with explain_donated_buffers():
                weights = weigh(self.rule, losses, terms, gram_of, self._communicator).detach().clone()
            found = dict(zip(terms, weights.unbind(), strict=True))
            self._weights |= {term: found[term] for term in losses}
            self._refreshed = tuple(losses)
        self._calls += 1

    def get_extra_state(self) -> dict[str, Any]:
        """Return the weights, the terms and the rule's own state."""
        return {
            "weights": dict(self._weights),
            "refreshed": list(self._refreshed),
            "calls": self._calls,
            "rule": self.rule.state_dict(),
        }

    def set_extra_state(self, state: Any) -> None:
        """Load what :meth:`get_extra_state` returned."""
        self._weights = {term: weight.clone() for term, weight in state["weights"].items()}
        self._calls = state["calls"]
        self._refreshed = tuple(state["refreshed"])
        self.rule.load_state_dict(state["rule"])

    def extra_repr(self) -> str:
        """Return rule and refresh interval, for ``repr``."""
        return ", ".join(filter(None, [repr(self.rule), f"every={self.every}", super().extra_repr()]))


def make_probe(parameters: Tensor | Iterable[Tensor] | None, backend: str | Backend) -> ParameterProbe | None:
    """Return the probe of ``parameters``, None without any.

    Raises:
        TypeError: a module, or parameters that are no tensors or sharded.
        ValueError: none in them, or one that needs no gradient.
    """
    if parameters is None:
        return None
    found = list_parameters(parameters)
    if not found:
        raise ValueError("parameters is empty; pass those of a layer that all terms share, or features with each call")
    for i, p in enumerate(found):
        if is_dtensor(p):
            raise TypeError(
                f"parameters[{i}] is sharded, and cannot be looked at; pass features with each call instead"
            )
        if not p.requires_grad:
            raise ValueError(f"parameters[{i}] needs no gradient; pass parameters that are trained")
    return ParameterProbe(found, backend)
