"""The errors of this package, with the base class `PatchIndexError`, and its warnings, `PatchIndexWarning`.

Each error says in one line what is wrong, where, and what to do. Each error is also the builtin exception
that a caller would expect: `InputError` is a `ValueError`. `exit_code` is the exit code of the command line:
2 for bad input, which is found before any work is done, and 1 for work that failed.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DeviceError",
    "InputError",
    "Option",
    "OutputExistsError",
    "PatchIndexError",
    "PatchIndexWarning",
    "SourceNotFoundError",
    "StoreError",
    "printable",
    "warn",
]

# Decorators made of context managers have a frame of their own between two frames of this package.
INSIDE = (str(Path(__file__).parent), contextlib.__file__)


def printable(text: object) -> str:
    r"""Return a text that a terminal prints as it is: all other characters are escaped, as in Python.

    File names and the strings of a store come from outside. Escape sequences in them could move the cursor,
    change the title of the window or hide text, and lone surrogates cannot be printed at all.

    Examples
    --------
    >>> print(printable("a\x1b[2Jb\nc\u202ed \u00e9"))
    a\x1b[2Jb\nc\u202ed é
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Option:
    """A parameter that a remedy names: `overwrite=True` in Python, `--overwrite` on the command line."""

    name: str
    value: object = None
    python: str | None = None  # the name in Python of an option that only the command line has

    def __str__(self) -> str:
        if self.python is not None:
            return self.python
        return self.name if self.value is None else f"{self.name}={self.value!r}"


def _one_line(text: str) -> str:
    """Join the lines of a message, of another library for example, and escape what is not printable."""
    return printable(re.sub(r"\s*\n\s*", " ", text.strip()))


class _Message(Exception):  # noqa: N818  (also the base of warnings)
    """The text of an error or a warning: `where: what; remedy` in one line."""

    def __init__(
        self,
        what: str,
        *,
        parameter: str | None = None,
        where: object = None,
        remedy: str | Sequence[str | Option] | None = None,
    ) -> None:
        self.what, self.parameter, self.where, self.remedy = what, parameter, where, remedy
        super().__init__(self.describe())

    def describe(self, spell: Callable[[Option], str] = str) -> str:
        """Return the message; `spell` writes the parameter and the options of the remedy."""
        where = self.where if self.parameter is None else spell(Option(self.parameter))
        message = _one_line(self.what)
        if where is not None:
            message = f"{printable(where)}: {message}"
        if self.remedy is None:
            return message
        parts = [self.remedy] if isinstance(self.remedy, str) else self.remedy
        return f"{message}; {_one_line(''.join(p if isinstance(p, str) else spell(p) for p in parts))}"

    # Some subclasses are also an OSError, which prints its arguments in another form.
    def __str__(self) -> str:
        return str(self.args[0])


class PatchIndexError(_Message):
    """Base class of all errors: `where: what; remedy` in one line.

    Parameters
    ----------
    what : str
        What is wrong.
    parameter : str, optional
        Name of the Python parameter whose value is wrong.
    where : object, optional
        The file, the field or the value that is wrong, when it is not a parameter.
    remedy : str, or sequence of str and Option, optional
        What to do. The parts of a sequence are joined without spaces.

    Examples
    --------
    >>> print(InputError("k must be odd, got 4", parameter="scales", remedy="use 3 or 5"))
    scales: k must be odd, got 4; use 3 or 5
    >>> error = InputError("exists", where="s.zarr", remedy=["give ", Option("overwrite", True)])
    >>> print(error)
    s.zarr: exists; give overwrite=True
    >>> error.describe(lambda option: f"--{option.name}")
    's.zarr: exists; give --overwrite'
    """

    exit_code = 1


class InputError(PatchIndexError, ValueError):
    """A value, file or setting given by the user is not acceptable."""

    exit_code = 2


class SourceNotFoundError(InputError, FileNotFoundError):
    """A file or folder given by the user does not exist."""


class OutputExistsError(InputError, FileExistsError):
    """The output exists, and the caller did not ask to overwrite it."""


class DeviceError(InputError, RuntimeError):
    """The device does not exist, or the installed FAISS does not support it."""


class StoreError(PatchIndexError, RuntimeError):
    """A store is damaged, or this version cannot read its format."""


class PatchIndexWarning(_Message, UserWarning):
    """A warning of this package: the input is accepted, but the result may not be as wanted.

    Takes the parameters of `PatchIndexError`.
    """


def warn(warning: PatchIndexWarning) -> None:
    """Issue a warning that names the nearest caller outside this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)
