"""Warnings that point at the user's line."""

import sys
import warnings

BETWEEN = ("mtadam_fused", "torch", "contextlib")  # what may stand between the user and a warning


def warn_user(message: str) -> None:
    """Warn at the line of the nearest caller that is neither this package nor torch."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level + 1)
