"""Checks of arguments that many functions take."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from patchindex.errors import InputError
from patchindex.regular_files import IrregularFileError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = [
    "accessing",
    "as_bool",
    "check_least",
    "check_optional",
    "check_path",
    "check_times",
    "is_name_in",
    "is_real",
    "is_whole",
    "path_exists",
]


def is_name_in(value: object, names: Collection[str]) -> TypeGuard[str]:
    """Return whether a value is one of these names; `value in names` raises TypeError for a list."""
    return isinstance(value, str) and value in names


def is_whole(value: object) -> TypeIs[int]:
    """Return whether a value is an integer, also of NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeIs[float]:
    """Return whether a value is a finite real number, also of NumPy, and no bool.

    Examples
    --------
    >>> [is_real(value) for value in (2, 0.5, float("nan"), 10**400, True, "2")]
    [True, True, False, False, False, False]
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def as_bool(value: object, parameter: str) -> bool:
    """Return a value that is True or False, also of NumPy, as a bool; refuse any other value.

    Examples
    --------
    >>> as_bool("no", "grayscale")
    Traceback (most recent call last):
        ...
    patchindex.errors.InputError: grayscale: must be True or False, got 'no'; give one of them
    """
    if isinstance(value, bool):
        return value
    from numpy import bool_  # the help of a command imports this module, and not NumPy

    if not isinstance(value, bool_):
        raise InputError(
            f"must be True or False, got {value!r}", parameter=parameter, remedy="give one of them"
        )
    return bool(value)


def check_least(**limits: tuple[Any, int] | tuple[Any, int, int]) -> None:
    """Refuse a value that is no whole number, below its least value, or above its largest value.

    The limits are given as `name=(value, least)` or `name=(value, least, most)`.

    Examples
    --------
    >>> check_least(steps=(2.5, 2))
    Traceback (most recent call last):
        ...
    patchindex.errors.InputError: steps: must be a whole number, got 2.5; use 2 or more
    """
    for name, (value, least, *most) in limits.items():
        if not is_whole(value):
            wanted = "a whole number"
        elif value < least or any(value > each for each in most):
            wanted = f"from {least} to {most[0]}" if most else f"at least {least}"
        else:
            continue
        remedy = f"use {least} to {most[0]}" if most else f"use {least} or more"
        raise InputError(f"must be {wanted}, got {value!r}", parameter=name, remedy=remedy)


def check_optional(**limits: tuple[Any, int] | tuple[Any, int, int]) -> None:
    """Refuse values as `check_least` does, but accept None."""
    check_least(**{name: limit for name, limit in limits.items() if limit[0] is not None})


def check_path(path: object, parameter: str = "path") -> None:
    """Refuse a value that is no path: no text or `Path`, empty, or with a character that no path has."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        what = f"is no path: {type(path).__name__}"
    elif os.fspath(path) == "" or "\0" in os.fspath(path):
        what = f"is no path: {os.fspath(path)!r}"
    else:
        return
    raise InputError(what, parameter=parameter, remedy="give the name of a file or folder")


@contextmanager
def accessing(path: object) -> Iterator[None]:
    """Turn an OSError in the block, which looks for a path, into InputError: a name may be too long.

    An IrregularFileError says more than that the path cannot be accessed, and is raised as it is.
    """
    try:
        yield
    except IrregularFileError:
        raise
    except OSError as error:
        raise InputError(
            f"cannot be accessed ({error.strerror})",
            where=path,
            remedy="check the path and its permissions",
        ) from error


def path_exists(path: Path) -> bool:
    """Return whether a path exists; refuse a path that the system cannot look up."""
    with accessing(path):
        return path.exists()


def check_times(times: Iterable[Any]) -> None:
    """Refuse times that are not all numbers in (0, 1)."""
    for t in times:
        if not is_real(t) or not 0 < t < 1:
            raise InputError(
                f"must lie in (0, 1), got {t!r}", parameter="times", remedy="use 0.05, for example"
            )
