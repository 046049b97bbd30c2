"""Regular files only: a FIFO blocks its reader for ever, a device has no end, and a link leads elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["IrregularFileError", "open_regular", "read_regular", "refuse_links"]

KINDS = {
    stat.S_IFIFO: "is a FIFO",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFDIR: "is a folder",
    stat.S_IFLNK: "is a link",
}


class IrregularFileError(OSError):
    """A path is no regular file, or its file is too large; `what` says which, without the path."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def open_regular(path: str | os.PathLike[str], *, follow_links: bool = False) -> BinaryIO:
    """Open a regular file for reading bytes; nothing else is ever opened.

    With `follow_links`, a link to a regular file is opened too.

    Raises
    ------
    IrregularFileError
        When the path is a FIFO, a device, a socket, a folder, or a link that is not followed.
    OSError
        As `open` does.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "fifo")
    >>> os.mkfifo(path)
    >>> open_regular(path)
    Traceback (most recent call last):
    patchindex.regular_files.IrregularFileError: is a FIFO, not a regular file
    """
    _refuse(os.stat(path) if follow_links else os.lstat(path))
    # The path may have changed since: neither wait for a writer nor follow a new link.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    file = open(os.fspath(path), "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
    try:
        _refuse(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: str | os.PathLike[str], most: int, *, follow_links: bool = False) -> bytes:
    """Return the bytes of a regular file; raise as `open_regular`, also beyond `most` bytes."""
    with open_regular(path, follow_links=follow_links) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise IrregularFileError(f"holds more than {most:,} bytes")
    return content


def refuse_links(folder: Path, name: str) -> None:
    """Raise IrregularFileError when a folder on the way from `folder` to the file `name` is a link."""
    for parent in Path(name).parents:
        if parent.parts and (folder / parent).is_symlink():
            raise IrregularFileError(f"is in the folder {parent.as_posix()}, which is a link")


def _refuse(found: os.stat_result) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise IrregularFileError(f"{KINDS.get(kind, 'is special')}, not a regular file")
