"""The names of the loss terms: finding them, adding to them, errors for unknown ones."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from ..hyperparameters import Term, plain_name


def check_term(term: Term) -> None:
    """Raise TypeError for a name that checkpoints cannot hold."""
    if not isinstance(term, (str, int)):
        raise TypeError(f"term {term!r} is a {type(term).__name__}; name terms by strings, or by their positions")


def check_terms(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Check ``terms``, and return them as a tuple.

    Raises:
        TypeError: not names of terms.
        ValueError: a name twice.
    """
    if isinstance(terms, str) or not isinstance(terms, Iterable):
        raise TypeError(f"terms is {terms!r}; it must be a list of names, or range(K) for K losses known by position")
    names = tuple(map(plain_name, terms))
    for term in names:
        check_term(term)
    if len(set(names)) != len(names):
        raise ValueError(f"terms is {list(names)}; each name may stand there once")
    return names


def find_term(term: Term, terms: Sequence[Term]) -> Term:
    """Return the name of a term that is given by name or by position.

    Raises:
        ValueError: a position that is neither of ``terms`` nor the next new one.
    """
    term = plain_name(term)
    if not isinstance(term, int) or term in terms:
        return term
    by_position = all(isinstance(name, int) for name in terms)
    if 0 <= term < len(terms):
        return terms[term]
    if by_position and term == len(terms):
        return term
    raise ValueError(
        f"unknown term {term!r}: the terms so far are {list(terms)}"
        + (f"; the next new position is {len(terms)}" if by_position else "; new terms need names")
    )


def add_terms(terms: Sequence[Term], names: Iterable[Term], *, fixed: bool) -> list[Term]:
    """Return ``terms`` with the new ones among ``names`` appended.

    Args:
        fixed: whether new ones are an error.

    Raises:
        TypeError: a new name that checkpoints cannot hold.
        ValueError: a new name where ``fixed``.
    """
    known = list(dict.fromkeys((*terms, *names)))
    for term in known[len(terms) :]:
        check_term(term)
        if fixed:
            made = f"the optimizer was made with terms={list(terms)}"
            raise ValueError(f"unknown term {term!r}: {made}{nearest(term, terms)}")
    return known


def nearest(term: Term, terms: Sequence[Term]) -> str:
    """Return a remark about which of ``terms`` may be meant."""
    close = get_close_matches(str(term), [name for name in terms if isinstance(name, str)], n=1)
    return f"; did you mean {close[0]!r}?" if close else "; use one of these names"
