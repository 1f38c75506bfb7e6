"""The bytes per parameter element that a step moves and a state keeps: the model to compare measurements with.

A step of MTAdam reads the K gradients twice (once for the norms), reads and writes the K second moments, the first
moment and the parameter: 16K + 16 where all are float32.
"""

FLOAT = 4  # bytes of the type that moments are kept in, for float32 and narrower parameters


def copy(element: int) -> int:
    """Return the bytes of a copy, for elements of so many bytes."""
    return 2 * element


def mtadam_step(terms: int, element: int) -> int:
    """Return the bytes of MTAdam's step, for parameters and gradients with elements of so many bytes."""
    return mtadam_read(terms, element) + mtadam_state(terms) + element


def mtadam_read(terms: int, element: int) -> int:
    """Return the bytes that MTAdam's step reads of these: the K gradients twice; 12K + 8 in float32."""
    return 2 * terms * element + mtadam_state(terms) + element


def mtadam_state(terms: int) -> int:
    """Return the bytes of MTAdam's state: K second moments and one first moment."""
    return (terms + 1) * FLOAT


def balanced_step(terms: int, element: int) -> int:
    """Return the bytes of BalancedAdam's step: one second moment, and the K gradients twice; 8K + 24 in float32."""
    return combined_step(terms, element, gram=True)


def balanced_read(terms: int, element: int) -> int:
    """Return the bytes that BalancedAdam's step reads of these; 8K + 12 in float32."""
    return 2 * terms * element + balanced_state() + element


def combined_step(terms: int, element: int, *, gram: bool) -> int:
    """Return the bytes of CombinedAdam's step. A rule that needs dot products reads the K gradients twice."""
    gradients = (2 if gram else 1) * terms * element
    return gradients + 2 * (balanced_state() + element)


def balanced_state() -> int:
    """Return the bytes of the state of BalancedAdam and CombinedAdam: two moments."""
    return 2 * FLOAT


def published_step(terms: int) -> int:
    """Return the bytes of the published form with K first moments in one float32 pass. Its loop makes many."""
    return 24 * terms + 8


def published_state(terms: int) -> int:
    """Return the bytes of the published form's moments. Its loop keeps K maxima and K denominators besides."""
    return 2 * terms * FLOAT


def adam_step(element: int) -> int:
    """Return the bytes of torch.optim.Adam's step: it reads the gradient, and updates parameter and two moments."""
    return 7 * element


def adam_state(element: int) -> int:
    """Return the bytes of torch.optim.Adam's state, of the type of the parameters."""
    return 2 * element
