"""The reason why a file cannot be read: damage, or the system refuses it (disk, permissions, limits)."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Sequence
from textwrap import shorten

from patchindex.errors import InputError, Option, printable

__all__ = ["first_line", "plain_name", "unreadable"]

LONGEST = 200  # characters of another library's message, which may quote a file
REMEDIES = {
    errno.EMFILE: "allow more open files, with ulimit -n",
    errno.ENFILE: "allow more open files, with ulimit -n",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EAGAIN: "close the program that writes it",  # the file is locked
}


def plain_name(name: str) -> str:
    """Return the name of a label in the composed form of Unicode; file systems of Macs decompose names."""
    return unicodedata.normalize("NFC", printable(name))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut if it is long; its type if there is no message."""
    lines = str(error).splitlines()
    return shorten(lines[0], LONGEST, placeholder=" ...") if lines else type(error).__name__


def unreadable(
    error: Exception,
    what: str,
    *,
    where: object,
    remedy: str | Sequence[str | Option],
    kind: type[InputError] = InputError,
) -> InputError:
    """Return the error to raise for a file that cannot be read.

    For an error of the system, the message names it. Otherwise the file is damaged: `kind(what, ...)`.
    """
    number = error.errno if isinstance(error, OSError) else None
    # Errors of decoders have no `errno`, except EINVAL: a damaged file can make a decoder seek outside it.
    if number is not None and number != errno.EINVAL:
        remedy = REMEDIES.get(number, "check the disk or the network")
        return InputError(f"cannot be read ({os.strerror(number)})", where=where, remedy=remedy)
    return kind(what, where=where, remedy=remedy)
