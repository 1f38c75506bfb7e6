"""Asking a rule for the weights of a step."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..distributed.communicator import Communicator
from ..hyperparameters import Term
from ..reference import arithmetic_type
from .rule import Rule


def ask(rule: Rule, gram: Tensor, losses: Mapping[int, Tensor], communicator: Communicator) -> Tensor:
    """Return the rule's ``[K]`` weights, the same in all processes.

    Args:
        gram: ``[K, K]`` float64 dot products of the terms' gradients, 0 where a term is absent.
        losses: scalars by the terms' positions, of those that are known.
        communicator: averages the losses over the processes.

    Raises:
        ValueError: the rule gave something else than K weights.
    """
    values = torch.full(gram.shape[:1], torch.nan, dtype=torch.float64, device=gram.device)
    if rule.needs_losses:
        for k, loss in losses.items():
            values[k] = loss.detach()
        values = communicator.all_reduce_mean(values)
    weights = rule(gram, values)
    if not isinstance(weights, Tensor) or weights.shape != values.shape:
        given = f"of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else f"{weights!r}"
        raise ValueError(
            f"{rule!r} gave weights {given}; it must give a tensor with one for each of the {len(values)} terms"
        )
    # A rule may draw random numbers, so all processes use the first one's weights.
    return communicator.broadcast_first(weights.to(values.device)) if communicator else weights


def weigh(
    rule: Rule,
    losses: Mapping[Term, Tensor],
    terms: Sequence[Term],
    gram_of: Callable[[Mapping[Term, Tensor], Communicator], Tensor] | None,
    communicator: Communicator,
) -> Tensor:
    """Return the rule's ``[K]`` weights of ``terms``, before any backward pass of their weighted sum.

    Args:
        losses: of the terms that are present, scalars with their graphs.
        gram_of: returns the dot products of the gradients of ``losses``, over all processes; called if the rule looks
            at them.
        communicator: of the processes that train together.

    Raises:
        ValueError: terms that the rule cannot weight, or not one weight for each.
    """
    rule.check_terms(terms, allow_more=False)
    positions = [list(terms).index(term) for term in losses]
    device = next(iter(losses.values())).device
    gram = torch.zeros(len(terms), len(terms), dtype=torch.float64, device=device)
    if rule.needs_gram and gram_of is not None:
        found = gram_of(losses, communicator).to(device)
        gram = found if positions == list(range(len(terms))) else spread(found, positions, gram)
    with torch.no_grad():
        return ask(rule, gram, dict(zip(positions, losses.values(), strict=True)), communicator)


def spread(found: Tensor, positions: Sequence[int], gram: Tensor) -> Tensor:
    """Put the rows and columns of ``found`` at their positions in ``gram``, without an index that would be copied."""
    for row, k in zip(found, positions, strict=True):
        for value, j in zip(row, positions, strict=True):
            gram[k, j] = value
    return gram


def weighted_sum(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of weight times loss over ``pairs`` of scalars, in float32 at least."""
    return torch.stack(
        [weight.to(loss.device, arithmetic_type(loss.dtype)) * loss.reshape(()) for weight, loss in pairs]
    ).sum()
