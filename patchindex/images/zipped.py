"""Zip archives: opened again in each process, and refused where zipfile cannot unpack a member."""

from __future__ import annotations

import os
import struct
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from patchindex.errors import InputError
from patchindex.images.unreadable import unreadable
from patchindex.images.untrusted import DEFLATE_RATIO, check_announced, open_file

__all__ = ["ZIP_DAMAGE", "ZipFile", "check_member"]

# The errors of zipfile and zlib for damage. RuntimeError: encryption and unknown compression.
ZIP_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
ENCRYPTED = 1  # a bit of `flag_bits`
METHODS = {9: "Deflate64", 12: "BZIP2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
REMEDY = "unpack it, and pack it again with plain deflate"


def check_member(info: zipfile.ZipInfo, where: object) -> None:
    """Refuse a member that is encrypted, packed by another method than deflate, or larger than it can be."""
    if info.flag_bits & ENCRYPTED:
        raise InputError("is encrypted", where=where, remedy="unpack it, and pack it again without password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = METHODS.get(info.compress_type, f"method {info.compress_type}")
        raise InputError(f"is packed by {method}, which is not read", where=where, remedy=REMEDY)
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else DEFLATE_RATIO
    check_announced(info.file_size, info.compress_size, where, ratio=ratio)


class ZipFile:
    """A zip archive that several threads and processes may read.

    Each process opens the file by itself: with a shared handle, processes would move one position. So a
    pickled archive holds the path, and a process that is forked opens the archive again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip, self._state = self._opened()
        self._process: int | None = os.getpid()

    def _opened(self) -> tuple[zipfile.ZipFile, tuple[int, int]]:
        """Return the open archive, and the size and time by which a change is seen."""
        file = None
        try:
            file = open_file(self.path)
            weakref.finalize(self, file.close)
            status = os.fstat(file.fileno())
            return zipfile.ZipFile(file), (status.st_size, status.st_mtime_ns)
        except InputError:
            raise
        except ZIP_DAMAGE as error:
            raise unreadable(
                error, "not a readable zip archive", where=self.path, remedy="download it again, or unpack it"
            ) from error

    def members(self) -> list[zipfile.ZipInfo]:
        """Return the members that are no folders, in the order of the directory."""
        members = self._zip.infolist()
        if not all(info.filename for info in members):
            raise InputError(
                "a member has no name", where=self.path, remedy="download it again, or unpack it"
            )
        return [info for info in members if not info.is_dir()]

    def open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        """Open a member for reading; several threads may call this at once."""
        if self._process != os.getpid():
            archive, state = self._opened()
            if state != self._state:
                raise InputError("has changed since it was opened", where=self.path, remedy="open it again")
            self._zip, self._process = archive, os.getpid()
        return self._zip.open(info)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path.absolute(), "_zip": None, "_state": self._state, "_process": None}
