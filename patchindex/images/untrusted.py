"""Checks before a file is read: regular files only, and no more values than its bytes can hold."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path
from typing import IO

from patchindex.errors import InputError, SourceNotFoundError
from patchindex.images.unreadable import unreadable
from patchindex.regular_files import IrregularFileError, open_regular

__all__ = [
    "DEFLATE_RATIO",
    "GZIP_MAGIC",
    "LARGEST_CHUNK",
    "check_announced",
    "check_chunk",
    "check_deflated",
    "check_regular",
    "check_stored",
    "may_fill_memory",
    "missing",
    "open_file",
    "read_text",
]

DEFLATE_RATIO = 1032  # deflate packs at most 1032 bytes into one byte
SLACK = 1 << 16  # bytes that headers and small files may add to any estimate
LARGEST_CHUNK = 1 << 30  # bytes of a storage chunk once it is unpacked
PIECE = 1 << 20  # bytes that are unpacked at once
GZIP_MAGIC = b"\x1f\x8b"
# Chunks of one colour may be left out of a file. So only arrays that are large, and of which almost no bytes
# are there, are refused.
LARGE_ARRAY, SPARSE_RATIO = 1 << 28, 1 << 16


def open_file(path: str | Path, *, kind: type[InputError] = InputError) -> IO[bytes]:
    """Open a regular file, links followed; raise `kind` for FIFOs, devices, sockets and broken links.

    FIFOs, devices and sockets never end, or never begin. Raises `SourceNotFoundError` for a missing file, and
    `OSError` for other errors of the system.
    """
    try:
        return open_regular(path, follow_links=True)
    except IrregularFileError as error:
        raise kind(error.what, where=path, remedy="give a file, or remove it") from error
    except FileNotFoundError as error:
        raise missing(path, kind) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise kind("is a link that leads to itself", where=path, remedy="remove the link") from error
    except ValueError as error:  # a null byte in the name
        raise InputError("is not the name of a file", where=path, remedy="check the name") from error


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a file that a library opens by its name; raise `InputError` as `open_file`."""
    try:
        with open_file(path) as file:
            return os.fstat(file.fileno())
    except InputError:
        raise
    except OSError as error:
        raise unreadable(error, "cannot be opened", where=path, remedy="check the name") from error


def missing(path: str | Path, kind: type[InputError] = InputError) -> InputError:
    """Return the error for a path at which there is nothing: `SourceNotFoundError`.

    For a dangling link the error names the target, and is a `kind` if `kind` is a subclass of `InputError`.
    """
    if os.path.islink(path):
        return (SourceNotFoundError if kind is InputError else kind)(
            f"is a link to {os.readlink(path)}, which does not exist",
            where=path,
            remedy="copy the file to which it should lead, or remove the link",
        )
    return SourceNotFoundError(
        "is not there any more",
        where=path,
        remedy="check the path, and do not move files while they are read",
    )


def read_text(path: Path, most: int, *, remedy: str) -> str:
    """Return a text file in UTF-8, of at most `most` bytes."""
    try:
        with open_file(path) as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise InputError(f"has more than {most:,} bytes", where=path, remedy=remedy)
        return data.decode("utf-8-sig")  # spreadsheets start UTF-8 files with a byte-order mark
    except InputError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(error, "not a readable text file in UTF-8", where=path, remedy=remedy) from error


def check_announced(announced: int, packed: int, where: object, *, ratio: int = 1) -> None:
    """Refuse a header that announces more bytes than `packed` bytes can hold.

    `ratio` is how much the packing can shrink data: 1 for bytes that are not packed.
    """
    if announced > packed * ratio + (SLACK if ratio > 1 else 0):
        raise InputError(
            f"truncated (the header announces {announced} bytes, and there are {packed}"
            f"{', packed' if ratio > 1 else ''})",
            where=where,
            remedy="download or copy it again",
        )


def check_chunk(nbytes: int, where: object) -> None:
    """Refuse storage chunks that would fill the memory once they are unpacked."""
    if nbytes > LARGEST_CHUNK:
        raise InputError(
            f"has chunks of {nbytes} bytes or more, over the limit of {LARGEST_CHUNK}",
            where=where,
            remedy="store it again in smaller chunks, of 1000 images for example",
        )


def may_fill_memory(packed: int) -> bool:
    """Return whether deflated data may unpack to more than the largest chunk."""
    return packed * DEFLATE_RATIO > LARGEST_CHUNK


def check_deflated(data: bytes, where: object) -> None:
    """Refuse deflated data, of zlib or gzip, that would fill the memory; unpacks in pieces, and keeps none.

    Libraries unpack a whole chunk, however long it is.
    """
    if not may_fill_memory(len(data)):
        return
    unpack, nbytes = zlib.decompressobj(zlib.MAX_WBITS | 32), 0  # 32: finds out whether it is gzip
    try:
        while data and not unpack.eof:
            nbytes += len(unpack.decompress(data, PIECE))
            data = unpack.unconsumed_tail
            check_chunk(nbytes, where)
            if unpack.eof and (rest := unpack.unused_data)[:2] == GZIP_MAGIC:
                unpack, data = zlib.decompressobj(zlib.MAX_WBITS | 32), rest
    except zlib.error:
        return  # the library finds the damage too


def check_stored(announced: int, stored: int, where: object) -> None:
    """Refuse an array that announces many bytes, of which almost no bytes are stored."""
    if announced > LARGE_ARRAY and announced > stored * SPARSE_RATIO:
        raise InputError(
            f"announces {announced} bytes, of which only {stored} are stored",
            where=where,
            remedy="copy it again, or store only the images that are there",
        )
