"""The base class of rules."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..hyperparameters import TermWeights
from .per_term import PerTerm, check_preference


class Rule:
    """Base class of rules: ``rule(gram, losses)`` returns the weights of K loss terms for one step.

    A rule can keep state from step to step, so give each optimizer an object of its own.

    A rule of your own is a subclass with a ``__call__``; if it keeps state from step to step, also with
    :meth:`state_dict` and :meth:`load_state_dict`. To wait for no GPU, it uses tensor operations only. For replay in a
    CUDA graph, it changes its state in place (:func:`copy_or_replace_`). ::

        class LoudestOnly(Rule):
            def __call__(self, gram, losses):
                return torch.nn.functional.one_hot(gram.diagonal().argmax(), len(gram)).double()

    Args:
        preference: how much each term counts: a mapping from the terms' names, or a sequence in their order, of numbers
            of at least 0; default 1 for each. What a rule makes of it is in its docstring.
        parameters: those whose gradients the rule looks at, usually the last shared layer's; default all that every
            term of the step reaches, or all if there is none.

    Raises:
        TypeError: ``parameters`` that are a module, or no tensors.
        ValueError: empty ``parameters``; a ``preference`` with a negative number, with zeros alone, or, at a step,
            without one for each term.

    Attributes:
        needs_gram: whether it looks at ``gram``; if not, the gradients are not read for it.
        needs_losses: whether it looks at ``losses``.
        parameters: those whose gradients ``gram`` is of; None for the default.
    """

    needs_gram: bool = True
    needs_losses: bool = False
    parameters: Sequence[Tensor] | None = None
    shown: ClassVar[tuple[str, ...]] = ()  # the arguments that repr() shows
    shown_if_changed: ClassVar[Mapping[str, Any]] = {"preference": None}  # and those that it shows if they differ
    _preference: PerTerm | None = None

    def __init__(self, *, preference: TermWeights = None, parameters: Tensor | Iterable[Tensor] | None = None) -> None:
        check_preference(preference)
        self._preference = PerTerm(preference, "preference")
        self.parameters = None if parameters is None else list_parameters(parameters)
        if self.parameters == []:
            raise ValueError("parameters is empty; pass those of a shared layer, or None for all shared ones")

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of the terms at this step.

        Args:
            gram: ``[K, K]`` float64, dot products of the terms' gradients; 0 where a term is absent from the step.
            losses: ``[K]`` float64 on the same device; NaN for a term that is absent, or if not ``needs_losses``.

        Returns:
            ``[K]`` on the same device; what it is for absent terms does not matter.
        """
        raise NotImplementedError

    @property
    def preference(self) -> TermWeights:
        """How much each term counts, as given."""
        return self._preference.given if self._preference else None

    def preference_like(self, terms: Tensor) -> Tensor:
        """Return ``[K]``, the preference on the device and with the dtype of ``terms``, which is ``[K]``."""
        return self._preference.like(terms) if self._preference else torch.ones_like(terms)

    def check_terms(self, terms: Sequence[Hashable], *, allow_more: bool) -> None:
        """Raise ValueError for terms (their names) that the rule cannot weight. Called before anything changes.

        Args:
            allow_more: whether more terms may follow.
        """
        if self._preference:
            self._preference.check_terms(terms, allow_more=allow_more)

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule keeps from step to step: tensors and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load copies of what :meth:`state_dict` returned."""

    def __repr__(self) -> str:
        names = [*self.shown, *(name for name, usual in self.shown_if_changed.items() if getattr(self, name) != usual)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


def check_gram(gram: Tensor) -> None:
    """Raise ValueError for what cannot be the dot products of K gradients."""
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(
            f"gram has shape {tuple(gram.shape)}; it must be [K, K], the dot products of K gradients: J @ J.T if J has "
            "them as rows"
        )


def list_parameters(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return ``parameters`` as a list.

    Raises:
        TypeError: it is a module, or something else that is not tensors.
    """
    if isinstance(parameters, Tensor):
        return [parameters]
    remedy = "pass tensors, such as the parameters() of the last shared layer"
    if isinstance(parameters, torch.nn.Module) or not isinstance(parameters, Iterable):
        raise TypeError(f"parameters is a {type(parameters).__name__}; {remedy}")
    listed = list(parameters)
    for i, p in enumerate(listed):
        if not isinstance(p, Tensor):
            raise TypeError(f"parameters[{i}] is a {type(p).__name__}; {remedy}")
    return listed


def copy_or_replace_(state: Tensor, new: Tensor) -> Tensor:
    """Return ``state`` with the values of ``new`` copied into it, or ``new`` where that has another shape or device."""
    return state.copy_(new) if state.shape == new.shape and state.device == new.device else new
