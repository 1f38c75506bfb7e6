"""The dot products that rules look at, of gradients with respect to a few tensors only."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..backends import Backend, select_backend
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
        self._backends = {p.device: select_backend(backend, p.device) for p in parameters}
        self.tables: list[ParamTable] = []
        self._layout: object = None

    def __call__(self, losses: Mapping[Term, Tensor], communicator: Communicator) -> Tensor:
        """Return ``[K, K]`` float64 dot products, of the gradients of the mean losses over all processes.

        Raises:
            RuntimeError: from autograd, or a gradient that is not dense.
        """
        grads = []
        for term, loss in losses.items():
            of_term = differentiate(loss, self._parameters)
            fit_to_params(of_term, self._parameters, term)
            communicator.all_reduce_mean_async(of_term)
            grads.append(of_term)
        communicator.wait()
        tables = self._current_tables(len(losses))
        steps = [self._make_args(table, grads) for table in tables]
        return sum_gram(steps, self._backends, len(losses), tables[0].device)

    def _current_tables(self, terms: int) -> list[ParamTable]:
        layout = terms, [(p.data_ptr(), p.stride(), p.numel()) for p in self._parameters]
        if layout != self._layout:
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
        ValueError: features without a graph.
    """

    def __init__(self, features: Tensor | Iterable[Tensor]) -> None:
        self._features = [features] if isinstance(features, Tensor) else list(features)
        for i, feature in enumerate(self._features):
            if not feature.requires_grad:
                raise ValueError(
                    f"features[{i}] has no graph (requires_grad is False); pass the tensors that the losses are "
                    "computed from, not detached copies"
                )

    def __call__(self, losses: Mapping[Term, Tensor], communicator: Communicator) -> Tensor:
        """Return ``[K, K]`` float64 dot products, of the gradients of the mean losses over all processes."""
        gram = torch.zeros(len(losses), len(losses), dtype=torch.float64, device=self._features[0].device)
        by_feature = zip(*(differentiate(loss, self._features) for loss in losses.values()), strict=True)
        for feature, grads in zip(self._features, by_feature, strict=True):
            rows = torch.stack([torch.zeros_like(feature) if g is None else g for g in grads]).flatten(1).double()
            gram += (rows @ rows.T).to(gram.device)
        # Each process has its share of the features, and the mean loss 1 / P of their gradients.
        return communicator.all_reduce_mean(gram) / communicator.size


def differentiate(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of ``loss`` with respect to ``tensors``, None for those that it does not reach."""
    if not loss.requires_grad:
        return [None] * len(tensors)
    return list(torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True))
