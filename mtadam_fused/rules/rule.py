"""The base class of rules."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor


class Rule:
    """Base class of rules: ``rule(gram, losses)`` returns the weights of K loss terms for one step.

    A rule of your own is a subclass with a ``__call__``; if it keeps state from step to step, also with
    :meth:`state_dict` and :meth:`load_state_dict`. To wait for no GPU, it uses tensor operations only. For replay in a
    CUDA graph, it changes its state in place (:func:`copy_or_replace_`). ::

        class LoudestOnly(Rule):
            def __call__(self, gram, losses):
                return torch.nn.functional.one_hot(gram.diagonal().argmax(), len(gram)).double()

    Attributes:
        needs_gram: whether it looks at ``gram``; if not, the gradients are not read for it.
        needs_losses: whether it looks at ``losses``.
        parameters: those whose gradients ``gram`` is of; None for the ones that every term of the step reaches.
    """

    needs_gram: bool = True
    needs_losses: bool = False
    parameters: Sequence[Tensor] | None = None

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of the terms at this step.

        Args:
            gram: ``[K, K]`` float64, dot products of the terms' gradients; 0 where a term is absent from the step.
            losses: ``[K]`` float64 on the same device; NaN for a term that is absent, or if not ``needs_losses``.

        Returns:
            ``[K]`` on the same device; what it is for absent terms does not matter.
        """
        raise NotImplementedError

    def check_terms(self, terms: Sequence[Hashable], *, allow_more: bool) -> None:
        """Raise ValueError for terms (their names) that the rule cannot weight. Called before anything changes.

        Args:
            allow_more: whether more terms may follow.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule keeps from step to step: tensors and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def copy_or_replace_(state: Tensor, new: Tensor) -> Tensor:
    """Return ``state`` with the values of ``new`` copied into it, or ``new`` where that has another shape or device."""
    return state.copy_(new) if state.shape == new.shape and state.device == new.device else new
