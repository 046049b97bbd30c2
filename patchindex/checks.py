"""Checks of arguments that many functions take."""

from __future__ import annotations

import os
from numbers import Integral
from typing import Any

from patchindex.errors import InputError

__all__ = ["check_least", "check_path", "is_whole"]


def is_whole(value: object) -> bool:
    """Return whether a value is an integer, also of NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_least(**limits: tuple[Any, int]) -> None:
    """Refuse a value that is no whole number, or below its least value.

    The limits are given as `name=(value, least)`.

    Examples
    --------
    >>> check_least(steps=(2.5, 2))
    Traceback (most recent call last):
        ...
    patchindex.errors.InputError: steps: must be a whole number, got 2.5; use 2 or more
    """
    for name, (value, least) in limits.items():
        if not is_whole(value) or value < least:
            wanted = f"at least {least}" if is_whole(value) else "a whole number"
            raise InputError(
                f"must be {wanted}, got {value!r}", parameter=name, remedy=f"use {least} or more"
            )


def check_path(path: object, parameter: str = "path") -> None:
    """Refuse a value that is no path: no text or `Path`, empty, or with a character that no path has."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        what = f"is no path: {type(path).__name__}"
    elif os.fspath(path) == "" or "\0" in os.fspath(path):
        what = f"is no path: {os.fspath(path)!r}"
    else:
        return
    raise InputError(what, parameter=parameter, remedy="give the name of a file or folder")
