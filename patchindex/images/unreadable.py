"""Why a file cannot be read: the system refuses, which says nothing of its contents, or it is damaged."""

from __future__ import annotations

import errno
import os

from patchindex.errors import InputError

__all__ = ["by_system", "first_line", "unreadable"]

REMEDIES = {
    errno.EMFILE: "allow more open files, with ulimit -n",
    errno.ENFILE: "allow more open files, with ulimit -n",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EAGAIN: "close the program that writes it",  # what a lock is answered with
}


def by_system(error: BaseException) -> bool:
    """Whether an error is the system's: of the disk, of permissions, of too many open files.

    Errors of decoders have no number, except EINVAL: a damaged file can send them to a place no file has.

    Examples
    --------
    >>> by_system(OSError(errno.EIO, "Input/output error")), by_system(OSError("image file is truncated"))
    (True, False)
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line.

    Examples
    --------
    >>> first_line(RuntimeError("bad" + chr(10) + "block")), first_line(RuntimeError())
    ('bad', 'RuntimeError')
    """
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def unreadable(
    error: Exception, what: str, *, where: object, remedy: str, kind: type[InputError] = InputError
) -> InputError:
    """Return the error to raise for a file that cannot be read.

    Parameters
    ----------
    error : Exception
        What was raised.
    what, where, remedy
        As in `InputError`, for a file that is damaged. Where it is the system that refuses, that is said.
    kind : type, optional
        Of the error for a damaged file.

    Examples
    --------
    >>> print(unreadable(OSError(errno.EACCES, "no"), "not an image", where="a.png", remedy="repair it"))
    a.png: cannot be read (Permission denied); check its permissions
    >>> print(unreadable(OSError("truncated"), "not an image", where="a.png", remedy="repair it"))
    a.png: not an image; repair it
    """
    if isinstance(error, OSError) and by_system(error):
        number = error.errno or 0
        return InputError(
            f"cannot be read ({os.strerror(number)})",
            where=where,
            remedy=REMEDIES.get(number, "check the disk, or the network it is on"),
        )
    return kind(what, where=where, remedy=remedy)
