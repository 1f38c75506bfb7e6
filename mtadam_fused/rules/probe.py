"""The dot products that rules look at, of gradients with respect to a few tensors only."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..backends import Backend
from ..backends.registry import add_backends
from ..distributed.communicator import Communicator
from ..gradients.collector import fit_to_params
from ..hyperparameters import Hyperparameters, Term
from ..reference import NO_ANCHOR
from ..tables.cache import build_tables
from ..tables.layout import StateLayout, TermGradients
from ..tables.param_table import ParamTable
from ..tables.step_args import StepArgs

NEUTRAL = Hyperparameters(0.0, (0.0, 0.0), 0.0, 0.0, False, False, False)  # of a step that updates nothing


class ParameterProbe:
    """Compute the dot products of the gradients of losses with respect to some parameters.

    It costs a backward pass for each loss, down to these parameters, and holds their gradients at once. The graph
    stays, and no ``.grad`` changes.

    Attributes:
        tables: of the parameters, with the dot products of the last call.

    Args:
        parameters: leaves of the graph, such as those of the last layer that all terms share.
        backend: of the kernels.
    """

    def __init__(self, parameters: Sequence[Tensor], backend: str | Backend = "auto") -> None:
        self._parameters = list(parameters)
        self._backend = backend
        self._backends: dict[torch.device, Backend] = {}
        add_backends(self._backends, backend, self._parameters)
        self.tables: list[ParamTable] = []
        self._layout: object = None

    def __call__(self, losses: Mapping[Term, Tensor], communicator: Communicator) -> Tensor:
        """Return ``[K, K]`` float64 dot products, of the gradients of the mean losses over all processes.

        Raises:
            RuntimeError: from autograd, no loss reaches any of the parameters, or a gradient that is not dense.
        """
        grads = []
        for term, loss in losses.items():
            of_term = differentiate(loss, self._parameters)
            fit_to_params(of_term, self._parameters, term)
            communicator.all_reduce_mean_async(of_term)  # while the next one is differentiated
            grads.append(of_term)
        communicator.wait()
        check_reached(grads, losses)
        tables = self._current_tables(len(losses))
        steps = [self._make_args(table, grads) for table in tables]
        return sum_gram(steps, self._backends, len(losses), tables[0].device)

    def is_of(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether these are the parameters that it looks at."""
        return list(map(id, parameters)) == list(map(id, self._parameters))

    def _current_tables(self, terms: int) -> list[ParamTable]:
        layout = terms, [(p.device, p.data_ptr(), p.stride(), p.numel()) for p in self._parameters]
        if layout != self._layout:
            add_backends(self._backends, self._backend, self._parameters)
            group = {"params": self._parameters, "amsgrad": False}
            self.tables = build_tables([group], {}, terms, StateLayout(has_norms=False, per_term=False))
            self._layout = layout
        return self.tables

    def _make_args(self, table: ParamTable, grads: TermGradients) -> StepArgs:
        own_grads = [[of_term[i] for i in table.positions] for of_term in grads]
        return StepArgs(table, own_grads, [NEUTRAL], [[1.0] * table.terms], [NO_ANCHOR])


def sum_gram(
    steps: Sequence[StepArgs], backends: Mapping[torch.device, Backend], terms: int, device: torch.device
) -> Tensor:
    """Return the ``[K, K]`` float64 dot products of the gradients of all tables, on ``device``.

    Leaves those of each parameter in ``table.gram``.
    """
    gram = torch.zeros(terms, terms, dtype=torch.float64, device=device)
    for args in steps:
        backends[args.table.device].term_gram(args)
        args.table.all_reduce_gram()
        gram += args.table.gram.sum(dim=0).to(device)
    return gram


class FeatureProbe:
    """Compute the dot products of the gradients of losses with respect to features.

    Features are what all terms are computed from, such as the output of a shared encoder: tensors of the graph that
    differ from step to step, and from process to process. It costs a backward pass for each loss, down to the features.

    Args:
        features: one tensor, or several.

    Raises:
        TypeError: features that are no tensors.
        ValueError: features without a graph.
    """

    def __init__(self, features: Tensor | Iterable[Tensor]) -> None:
        self._features = [features] if isinstance(features, Tensor) else list(features)
        for i, feature in enumerate(self._features):
            if not isinstance(feature, Tensor):
                raise TypeError(f"features[{i}] is a {type(feature).__name__}; pass tensors, a mapping as its values()")
            if not feature.requires_grad:
                raise ValueError(
                    f"features[{i}] has no graph (requires_grad is False); pass the tensors that the losses are "
                    "computed from, not detached copies"
                )

    def __call__(self, losses: Mapping[Term, Tensor], communicator: Communicator) -> Tensor:
        """Return ``[K, K]`` float64 dot products, of the gradients of the mean losses over all processes.

        Raises:
            RuntimeError: from autograd, or no loss reaches any of the features.
        """
        gram = torch.zeros(len(losses), len(losses), dtype=torch.float64, device=self._features[0].device)
        by_loss = [differentiate(loss, self._features) for loss in losses.values()]
        check_reached(by_loss, losses)
        for feature, grads in zip(self._features, zip(*by_loss, strict=True), strict=True):
            rows = torch.stack([torch.zeros_like(feature) if g is None else g for g in grads]).flatten(1).double()
            gram += (rows @ rows.T).to(gram.device)
        # Each process has its share of the features, and the mean loss 1 / P of their gradients.
        return communicator.all_reduce_mean(gram) / communicator.size


def differentiate(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of ``loss`` with respect to ``tensors``.

    They are None for tensors that the loss does not reach, and for those that need no gradient, such as frozen ones.
    """
    needed = [t for t in tensors if t.requires_grad]
    if not needed or not loss.requires_grad:
        return [None] * len(tensors)
    grads = iter(torch.autograd.grad(loss, needed, retain_graph=True, allow_unused=True))
    return [next(grads) if t.requires_grad else None for t in tensors]


def check_reached(grads: TermGradients, losses: Mapping[Term, Tensor]) -> None:
    """Raise RuntimeError if ``losses`` have graphs, but no gradient with respect to any tensor."""
    if all(grad is None for row in grads for grad in row) and any(loss.requires_grad for loss in losses.values()):
        raise RuntimeError(
            f"none of the losses {list(losses)} reaches what the rule looks at; name parameters of a layer that they "
            "are computed with, and that is not frozen"
        )
