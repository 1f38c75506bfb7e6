"""UPGrad."""

from torch import Tensor

from .gram_rule import GramRule, shares
from .nonnegative import nonnegative_least


class UPGrad(GramRule):
    """Bring each gradient out of conflict with all others, and take the mean: UPGrad (Quinton and Rey, 2406.16232).

    Each gradient is projected on the dual cone of all gradients, the directions along which no loss grows. The mean of
    the projections is such a direction too. With G the matrix of dot products, the weights are
    ``sum_i p_i argmin(v @ G @ v for v >= e_i)``, where e_i is the unit vector of term i, and p_i is 1 over the number
    of terms. Exact, where the published code adds 1e-4 to the diagonal of G. Non-conflicting, and linear in each
    gradient's scale.

    Up to eight terms nothing waits for the device. Of more, an active set on the host: one wait.

    Args:
        preference: what the mean of the projections is weighted by.
        normalized: whether to weight the gradients divided by their norms.
        parameters: those whose gradients the rule looks at; default all that every term of the step reaches.

    Raises:
        ValueError: as in :class:`Rule`.
    """

    def coefficients(self, cosines: Tensor, norms: Tensor, preference: Tensor) -> Tensor:
        added, _ = nonnegative_least(cosines, cosines)  # row i: what the projection adds to unit vector i
        of_unit = shares(preference) * norms
        return of_unit + of_unit @ added
