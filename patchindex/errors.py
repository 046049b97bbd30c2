"""Every error this package raises on purpose.

One base class, `PatchIndexError`. Each error says what is wrong, where (the file or the parameter) and the
way out, in one line, and is at the same time the builtin that a caller who has never heard of this package
would catch. `exit_code` is what the command line ends with: 2 for bad input, found before any work is done,
and 1 for work that failed.
"""

from __future__ import annotations

__all__ = [
    "DeviceError",
    "InputError",
    "OutputExistsError",
    "PatchIndexError",
    "SourceNotFoundError",
    "StoreError",
]


class PatchIndexError(Exception):
    """Base class: `where: what; remedy` in one line.

    Parameters
    ----------
    what : str
        What is wrong.
    where : str, optional
        The file, the field or the parameter it is wrong in.
    remedy : str, optional
        What to do about it, with Python's names: `overwrite=True`, which the command line calls --overwrite.

    Examples
    --------
    >>> print(InputError("k must be odd, got 4", where="scales", remedy="use 3 or 5"))
    scales: k must be odd, got 4; use 3 or 5
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        message = what if where is None else f"{where}: {what}"
        super().__init__(message if remedy is None else f"{message}; {remedy}")

    # OSError and KeyError, which some subclasses also are, would print their arguments their own way.
    def __str__(self) -> str:
        return str(self.args[0])


class InputError(PatchIndexError, ValueError):
    """A value, file or setting given by the user is not acceptable."""

    exit_code = 2


class SourceNotFoundError(InputError, FileNotFoundError):
    """A file or folder given by the user does not exist."""


class OutputExistsError(InputError, FileExistsError):
    """The output is already there, and nothing is overwritten unasked."""


class DeviceError(InputError, RuntimeError):
    """The device asked for is not there, or the installed FAISS has no support for it."""


class StoreError(PatchIndexError, RuntimeError):
    """A store is damaged, or was written by a version this one cannot read."""
