"""The hyper-parameters of a parameter group: their defaults, their ranges, their errors."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor

from . import reference

Term = Hashable
TermWeights = Mapping[Any, float] | Sequence[float] | None

Self = TypeVar("Self", bound="Hyperparameters")

NORM_INITS = ("first_step", "first_nonzero")
NORMS = {
    **{"average": reference.AVERAGE, "corrected": reference.CORRECTED},
    **{"peak": reference.PEAK, "decaying_peak": reference.DECAYING_PEAK},
}
ANCHORS = {"first": reference.FIRST, "none": reference.NO_ANCHOR, "geometric_mean": reference.GEOMETRIC_MEAN}


def plain_name(term: Any) -> Any:
    """Return an exact str or int in the place of an object of a subclass, such as an Enum's, for checkpoints."""
    if isinstance(term, str):
        return str.__str__(term)
    return int(term) if isinstance(term, int) and not isinstance(term, bool) else term


def plain_weights(weights: Any) -> Any:
    """Return weights that were checked as a dict or list of exact names and floats, None for None."""
    if isinstance(weights, Mapping):
        return {plain_name(term): float(weight) for term, weight in weights.items()}
    return None if weights is None else [float(weight) for weight in weights]


class NormRule(NamedTuple):
    """How the running norms of a parameter group advance."""

    beta3: float  # decay
    first_nonzero: bool  # whether they start at their first non-zero value
    norms: int  # a code of NORMS


@dataclass(frozen=True)
class Hyperparameters:
    """The validated hyper-parameters of one parameter group of :class:`mtadam_fused.CombinedAdam`."""

    BETAS: ClassVar[tuple[str, ...]] = ("the first moment", "the second moment")  # what each decays
    # For checkpoints, what the values of a group are turned into once they have been checked.
    PLAIN: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}

    lr: float | Tensor
    betas: tuple[float, ...]
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    decoupled_weight_decay: bool

    @classmethod
    def from_group(cls: type[Self], group: Mapping[str, Any]) -> Self:
        """Read and validate a parameter group. Betas in Tensors become numbers.

        Raises:
            ValueError: a value is out of its range; the message names it, and what to use instead.
        """
        hyperparameters = cls(**{name: group[name] for name in cls.names()} | {"betas": read_betas(group["betas"])})
        hyperparameters.check()
        return hyperparameters

    @classmethod
    def checked(cls, group: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return ``group`` with values that checkpoints can hold.

        Args:
            defaults: of what the group lacks.

        Raises:
            ValueError: as :meth:`from_group`.
        """
        cls.from_group({**(defaults or {}), **group})
        return {name: cls.PLAIN[name](value) if name in cls.PLAIN else value for name, value in group.items()}

    def is_current(self, group: Mapping[str, Any]) -> bool:
        """Return whether these are plainly still the values of ``group``, so that it needs no validation.

        False for values that can change in place, such as a learning rate or betas in Tensors.
        """
        return all(group[name] is value and isinstance(value, IMMUTABLE) for name, value in vars(self).items())

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the hyper-parameters."""
        return [field.name for field in fields(cls)]

    def check(self) -> None:
        """Raise ValueError for a value out of its range."""
        check_lr(self.lr)
        check_betas(self.betas, self.BETAS)
        check_not_negative("eps", self.eps)
        check_not_negative("weight_decay", self.weight_decay)

    @property
    def grad_sign(self) -> float:
        """-1 to maximize, else 1."""
        return -1.0 if self.maximize else 1.0

    @property
    def decays(self) -> tuple[float, float]:
        """Weight decay in the L2 form, and decoupled weight decay; one of them is 0."""
        return (0.0, self.weight_decay) if self.decoupled_weight_decay else (self.weight_decay, 0.0)

    @property
    def norm_rule(self) -> NormRule:
        """How the running norms advance; for MTAdam only."""
        return NormRule(0.0, False, NORMS["average"])

    def weights(self, terms: Sequence[Term]) -> list[float]:
        """Return the user's weight of each of ``terms``; errors as in :func:`weights_of`."""
        return weights_of(None, terms)

    def anchor_code(self, terms: Sequence[Term]) -> int:
        """Return what ``terms`` are balanced against; errors as in :func:`anchor_code`."""
        return ANCHORS["none"]


IMMUTABLE = (float, int, bool, str, tuple, type(None))


@dataclass(frozen=True)
class MTAdamHyperparameters(Hyperparameters):
    """The validated hyper-parameters of one parameter group of :class:`mtadam_fused.MTAdam`."""

    BETAS: ClassVar[tuple[str, ...]] = ("the first moment", "the second moments", "the norms")
    PLAIN: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "term_weights": plain_weights,
        "anchor": plain_name,
    }

    norm_init: str
    term_weights: TermWeights
    anchor: Term
    norms: str

    def check(self) -> None:
        """Raise ValueError for a value out of its range."""
        super().check()
        if self.norm_init not in NORM_INITS:
            raise ValueError(f"norm_init is {self.norm_init!r}; it must be one of {', '.join(NORM_INITS)}")
        check_term_weights(self.term_weights)
        check_no_negative_weight(self.term_weights)
        if not isinstance(self.anchor, Hashable) or self.anchor is None:
            raise ValueError(
                f"anchor is {self.anchor!r}; it must be one of {', '.join(ANCHORS)}, or the name of a term"
            )
        if self.norms not in NORMS:
            raise ValueError(f"norms is {self.norms!r}; it must be one of {', '.join(NORMS)}")

    @property
    def norm_rule(self) -> NormRule:
        """How the running norms advance."""
        return NormRule(self.betas[2], self.norm_init == "first_nonzero", NORMS[self.norms])

    def weights(self, terms: Sequence[Term]) -> list[float]:
        """Return the user's weight of each of ``terms``; errors as in :func:`weights_of`."""
        return weights_of(self.term_weights, terms)

    def anchor_code(self, terms: Sequence[Term]) -> int:
        """Return what ``terms`` are balanced against; errors as in :func:`anchor_code`."""
        return anchor_code(self.anchor, terms)


def anchor_code(anchor: Term, terms: Sequence[Term]) -> int:
    """Return the code of ANCHORS, or the position of the term that ``anchor`` names.

    Raises:
        ValueError: no such term.
    """
    if anchor in ANCHORS:
        return ANCHORS[anchor]
    if anchor not in terms:
        raise ValueError(
            f"anchor is {anchor!r}, and the terms are {list(terms)}; name one of them, use one of "
            f"{', '.join(ANCHORS)}, or give the optimizer all names as terms="
        )
    return list(terms).index(anchor)


def weights_of(
    given: TermWeights, terms: Sequence[Term], *, allow_more: bool = False, name: str = "term_weights"
) -> list[float]:
    """Return the weight of each of ``terms``, in their order.

    Args:
        given: a group's ``term_weights``, or anything else that gives each term a number.
        terms: names of the terms.
        allow_more: whether more terms may follow, so that a sequence of weights may be longer than ``terms``.
        name: of ``given``, for errors.

    Raises:
        ValueError: a sequence of weights of another length, or a mapping that lacks a term.
    """
    if given is None:
        return [1.0] * len(terms)
    if isinstance(given, Mapping):
        for term in terms:
            if term not in given:
                raise ValueError(
                    f"unknown term {term!r}: {name} names {list(given)}; give it a number there (weight 1.0 is neutral)"
                )
        return [float(given[term]) for term in terms]
    if len(given) != len(terms) and not (allow_more and len(given) > len(terms)):
        raise ValueError(
            f"{name} has {len(given)} weights for {len(terms)} terms {list(terms)}; give one weight per term, "
            "or a mapping from names to weights if terms come and go"
        )
    return [float(weight) for weight in given[: len(terms)]]


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a real number (NumPy's too), and not a bool or a Tensor."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_not_negative(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a finite number of at least 0."""
    if not is_number(value) or not 0.0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a finite number of at least 0")


def check_lr(lr: Any) -> None:
    """Raise ValueError for a bad learning rate. Does not read a Tensor on a device, which would wait for the device."""
    if not isinstance(lr, Tensor):
        check_not_negative("lr", lr)
    elif lr.numel() != 1:
        raise ValueError(f"lr is a Tensor of shape {tuple(lr.shape)}; it must have one element")
    elif lr.device.type == "cpu":
        check_not_negative("lr", lr.item())


def read_betas(betas: Any) -> Any:
    """Return ``betas`` with numbers in the place of Tensors, which torch.optim.Adam takes too; else ``betas`` itself.

    Raises:
        ValueError: a Tensor of several elements, or on a device, where reading it would wait for the device.
    """
    if not isinstance(betas, Sequence) or not any(isinstance(beta, Tensor) for beta in betas):
        return betas
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"betas[{i}] is a Tensor of shape {tuple(beta.shape)}; it must have one element")
        if isinstance(beta, Tensor) and beta.device.type != "cpu":
            raise ValueError(
                f"betas[{i}] is a Tensor on {beta.device}; each step would wait for it: use a number, or a Tensor on "
                "the CPU"
            )
    return tuple(beta.item() if isinstance(beta, Tensor) else beta for beta in betas)


def check_betas(betas: Any, decayed: Sequence[str]) -> None:
    """Raise ValueError unless ``betas`` are numbers in [0, 1), one for each name of what they decay."""
    is_sequence = isinstance(betas, Sequence) and len(betas) == len(decayed)
    if not (is_sequence and all(is_number(b) and 0.0 <= b < 1.0 for b in betas)):
        raise ValueError(f"betas is {betas!r}; it must be {len(decayed)} numbers in [0, 1), for {', '.join(decayed)}")


def check_no_negative_weight(term_weights: TermWeights) -> None:
    """Raise ValueError for a negative weight, which would maximize that term."""
    for key, weight in items_of(term_weights):
        if weight < 0:
            raise ValueError(
                f"term_weights[{key!r}] is {weight!r}; it must be at least 0: to maximize this term alone, change the "
                "sign of its loss; to maximize all terms, use maximize=True"
            )


def items_of(weights: TermWeights) -> Iterable[tuple[Any, float]]:
    """Return the weights by the terms' names or positions; none for None."""
    return weights.items() if isinstance(weights, Mapping) else enumerate(weights or ())


def check_term_weights(weights: Any, name: str = "term_weights") -> None:
    """Raise ValueError unless ``weights`` are None, or a mapping or sequence of finite numbers."""
    if weights is None:
        return
    if not isinstance(weights, (Mapping, Sequence)) or isinstance(weights, str):
        raise ValueError(f"{name} is {weights!r}; it must be a mapping from term to number, or a sequence of numbers")
    for key, weight in items_of(weights):
        if not is_number(weight) or not math.isfinite(weight):
            raise ValueError(f"{name}[{key!r}] is {weight!r}; it must be a finite number")
