"""Labels: one integer an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from patchindex.errors import InputError
from patchindex.images.unreadable import first_line

__all__ = ["as_labels"]


def as_labels(values: Any, count: int, *, where: object = "labels") -> np.ndarray:
    """Check labels once, at the edge, and return them as int64.

    Parameters
    ----------
    values : array-like of integers, shape (count,)
        Floats are accepted when every one is integral.
    count : int
        The number of images.
    where : object, optional
        The file or parameter the labels came from, for messages.

    Returns
    -------
    numpy.ndarray
        int64, shape (count,), a new array.

    Raises
    ------
    InputError
        Another shape or length, or labels that are not integers.

    Examples
    --------
    >>> as_labels([3.0, 1.0], 2)
    array([3, 1])
    """
    try:
        array = np.asarray(values)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # they may be in a file, and storage libraries raise what they like for damage
        raise InputError(
            f"labels cannot be read as an array ({first_line(error)})",
            where=where,
            remedy="give one integer an image",
        ) from error
    if array.ndim != 1:
        raise InputError(
            f"labels have shape {array.shape}, expected ({count},)",
            where=where,
            remedy="give one integer an image",
        )
    if len(array) != count:
        raise InputError(
            f"{len(array)} labels for {count} images",
            where=where,
            remedy="give exactly one label an image, in the order of the images",
        )
    if array.dtype.kind not in "iuf":
        raise InputError(
            f"labels have dtype {array.dtype}, expected integers",
            where=where,
            remedy="number the classes: np.unique(labels, return_inverse=True)[1]",
        )
    # Beyond 2**53 a float no longer tells neighbouring integers apart, and int64 ends at 2**63.
    bound = 2.0**53 if array.dtype.kind == "f" else 2.0**63
    if array.dtype.kind != "i":
        fits = np.isfinite(array) & (np.abs(array) < bound)
        wrong = ~(fits & (np.where(fits, array, 0) % 1 == 0))
        if wrong.any():
            first = int(np.argmax(wrong))
            raise InputError(
                f"label {first} is {array[first]}, not an integer that int64 holds",
                where=where,
                remedy="give integer labels",
            )
    return array.astype(np.int64)
