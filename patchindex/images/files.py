"""Many image files in one place: a folder or a zip archive, opened by name and decoded in parallel."""

from __future__ import annotations

import os
import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np
from PIL import Image

from patchindex.errors import InputError, Option, SourceNotFoundError
from patchindex.images.unreadable import first_line, unreadable

__all__ = [
    "GRAY_MODES",
    "SUFFIXES",
    "Archive",
    "BadImageError",
    "Files",
    "Folder",
    "check_depth",
    "decoding",
    "files_at",
    "in_parallel",
    "opened_image",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
GRAY_MODES = frozenset({"1", "L", "LA", "La"})
# Without modes of more than 8 bits ("I", "I;16", "F"): Pillow clips them to 255 when it converts.
MODES = GRAY_MODES | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
# Pillow silently keeps the high byte of colours with 16 bits per channel; only the raw mode of its decoder
# shows them. A raw mode that ends in ;16 alone is a BMP with 5, 6 and 5 bits.
DEEP = re.compile(r";16[BLN]")
TIFF_BITS = 258  # the TIFF tag with the bits per channel
# The errors of Pillow's decoders, zipfile and zlib for damaged files; zipfile raises RuntimeError for
# encryption and unknown compression.
DAMAGE = (
    OSError,
    KeyError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    RuntimeError,
    Image.DecompressionBombError,
)

PIECE = 16  # items per task of a thread

T = TypeVar("T")
R = TypeVar("R")


class BadImageError(InputError):
    """An image whose contents cannot be used; `skip_bad` leaves it out. Other errors are never skipped."""


class Files(Protocol):
    """Image files by relative name."""

    root: Path

    def names(self) -> list[str]:
        """Return the relative names of image files, sorted, without hidden files."""

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading, also from several threads at once."""


class Folder:
    """The image files of a folder and its sub-folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Return the relative names of image files, sorted, without hidden files."""
        return sorted(self._names())

    def _names(self) -> Iterator[str]:
        def refuse(error: OSError) -> None:
            raise InputError(
                f"cannot be listed ({error.strerror})", where=error.filename, remedy="check its permissions"
            ) from error

        # Class folders are often links.
        for folder, folders, files in os.walk(self.root, followlinks=True, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in files:
                name = (Path(folder) / file).relative_to(self.root).as_posix()
                if _is_image(name):
                    yield name

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading, also from several threads at once."""
        return (self.root / name).open("rb")


class Archive:
    """The image files of a zip archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self._zip = zipfile.ZipFile(root)
        except (OSError, zipfile.BadZipFile) as error:
            raise unreadable(
                error, "not a readable zip archive", where=root, remedy="download it again, or unpack it"
            ) from error
        # A second entry of the same name replaces the first.
        self._entries = {_plain(info.filename): info for info in self._zip.infolist() if not info.is_dir()}

    def names(self) -> list[str]:
        """Return the relative names of image files, sorted, without hidden files."""
        return sorted(name for name in self._entries if _is_image(name))

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading, also from several threads at once."""
        return self._zip.open(self._entries[name])


def files_at(path: Path) -> Files:
    """Return the image files of a folder or a zip archive."""
    return Folder(path) if path.is_dir() else Archive(path)


def _plain(name: str) -> str:
    r"""Return a name in an archive as a relative path: `./cat/1.png` and `cat\1.png` are `cat/1.png`."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _is_image(name: str) -> bool:
    """Return whether a relative path is an image file, not hidden, not added to an archive by a Mac."""
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(p.startswith(".") or p == "__MACOSX" for p in parts)


def check_depth(image: Image.Image, where: object) -> None:
    """Raise `BadImageError` if an image, not loaded yet, has more than 8 bits per channel."""
    tags = getattr(image, "tag_v2", {})
    deep = bool(np.max(tags.get(TIFF_BITS, 1)) > 8)
    for codec, _, _, args in getattr(image, "tile", ()):
        args = args if isinstance(args, tuple) else (args,)
        deep |= isinstance(args[0], str) and DEEP.search(args[0]) is not None
        deep |= codec in ("ppm", "ppm_plain") and args[-1] > 255
    if deep or image.mode not in MODES:
        mode = "" if image.mode in MODES else f", or an unusual colour space (mode {image.mode})"
        raise BadImageError(
            f"has more than 8 bits per channel{mode}", where=where, remedy="convert it to 8-bit RGB or gray"
        )


@contextmanager
def decoding(
    where: object, what: str = "not a readable image (truncated or another kind of file)"
) -> Iterator[None]:
    """Turn errors of decoders into `BadImageError` and errors of the system into `InputError`.

    `{}` in `what` stands for the message of the error.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            "is not there any more", where=where, remedy="do not move the images while they are read"
        ) from error
    except DAMAGE as error:
        raise unreadable(
            error,
            what.format(first_line(error)),
            where=where,
            remedy=["repair or remove it, or leave out such images with ", Option("skip_bad", True)],
            kind=BadImageError,
        ) from error


@contextmanager
def opened_image(files: Files, name: str) -> Iterator[Image.Image]:
    """Open an image of 8 bits per channel; errors are those of `decoding`."""
    where = files.root / name
    with decoding(where), files.open(name) as file, Image.open(file) as image:
        check_depth(image, where)
        yield image


def in_parallel(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return the results of a function for all items, computed in one thread per core.

    An error is that of the first item for which the function raises.

    Examples
    --------
    >>> in_parallel(abs, [-2, 1])
    [2, 1]
    """

    def every(some: Sequence[T]) -> list[R]:
        return [function(item) for item in some]

    workers = os.cpu_count() or 1
    pieces = [items[i : i + PIECE] for i in range(0, len(items), PIECE)]
    if len(pieces) < 2:
        return every(items)
    with ThreadPoolExecutor(min(workers, len(pieces)), "patchindex-decode") as pool:
        parts = [pool.submit(every, some) for some in pieces]
        try:
            return [found for part in parts for found in part.result()]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
