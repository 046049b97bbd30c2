"""Drift: how far images that were appended differ from the images that a scale was trained on.

Each call of `patchindex.append` measures the drift of its patches; the attributes of the scale keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["CLIPPED", "FARTHER", "has_blind_codes", "is_far", "leaves_out_more", "ratio"]

# Codes tell appended patches apart badly if more than CLIPPED of their values are out of range, or if
# components leave out LEFT_OUT_MORE times as much variance as of the trained patches and more than LEFT_OUT.
# Lists hold them badly if their squared distance to centroids is over FARTHER times as large.
FARTHER, CLIPPED = 1.2, 0.01
LEFT_OUT_MORE, LEFT_OUT = 2.0, 0.02
LEAST = 1e-9  # smaller distances and shares are rounding errors


def ratio(new: float, old: float) -> float | None:
    """Return `new / old`; None when both are 0."""
    return None if max(new, old) <= LEAST else round(new / max(old, LEAST), 4)


def leaves_out_more(drift: Mapping[str, Any], energy: float) -> bool:
    """Return whether codes leave out much more variance of appended patches; `energy` is `pca_energy`."""
    left_out = drift["left_out"] or 0
    return left_out > LEFT_OUT_MORE and left_out * max(1 - energy, LEAST) > LEFT_OUT


def has_blind_codes(drift: Mapping[str, Any], energy: float) -> bool:
    """Return whether codes tell appended patches apart badly; `energy` is the scale's `pca_energy`."""
    return leaves_out_more(drift, energy) or drift["clipped"] > CLIPPED


def is_far(drift: Mapping[str, Any], energy: float) -> bool:
    """Return whether codes or lists fit appended patches badly, so that searches miss more of them."""
    return (drift["distance"] or 0) > FARTHER or has_blind_codes(drift, energy)
