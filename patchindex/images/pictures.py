"""Images that Pillow decodes: which are refused, and a source that decodes on demand on all cores."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import numpy as np
from PIL import Image

from patchindex.errors import InputError, Option, SourceNotFoundError
from patchindex.images.source import ImageSource
from patchindex.images.transform import Transform
from patchindex.images.unreadable import first_line, unreadable

__all__ = ["BadImageError", "PictureSource", "check_depth", "decoding", "in_parallel", "is_gray"]

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


class PictureSource(ImageSource):
    """Images that are decoded one by one and then transformed; a subclass sets `_transform` first."""

    _transform: Transform

    @abstractmethod
    def _picture(self, i: int) -> AbstractContextManager[Image.Image]:
        """Open image i."""

    @abstractmethod
    def _where(self, i: int) -> object:
        """Return the place of image i, for messages."""

    def _size(self, i: int, image: Image.Image) -> tuple[int, int]:
        """Return (height, width) of image i after the transform."""
        return self._transform.size(image.height, image.width, where=self._where(i))

    def _check_size(self, i: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
        if size != expected:
            raise InputError(
                f"has {size[0]}×{size[1]} pixels, but the first image has {expected[0]}×{expected[1]}",
                where=self._where(i),
                remedy=["bring all images to one size with ", Option("resize", 32), ", for example"],
            )

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        ids = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        result = np.empty((len(ids), *self.shape[1:]), np.uint8)
        gray = self.shape[3] == 1

        def decode(row: int) -> None:
            i = ids[row]
            with self._picture(i) as image:
                self._check_size(i, self._size(i, image), self.shape[1:3])
                if gray and not self._transform.grayscale and not is_gray(image):
                    raise InputError(
                        "has colours, and had none when the source was opened",
                        where=self._where(i),
                        remedy=["give ", Option("grayscale", True), ", or open the source again"],
                    )
                result[row] = self._transform.apply(image, "L" if gray else "RGB")

        in_parallel(decode, range(len(ids)))
        return result


def is_gray(image: Image.Image) -> bool:
    """Return whether an image has one channel of colour."""
    return image.mode in GRAY_MODES


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
def decoding(where: object) -> Iterator[None]:
    """Turn errors of decoders into `BadImageError` and errors of the system into `InputError`."""
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
            f"not a readable image ({first_line(error)})",
            where=where,
            remedy=["repair or remove it, or leave out such images with ", Option("skip_bad", True)],
            kind=BadImageError,
        ) from error


def in_parallel(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return the results of a function for all items, computed in one thread per core.

    An error is that of the first item for which the function raises.
    """

    def every(some: Sequence[T]) -> list[R]:
        return [function(item) for item in some]

    pieces = [items[i : i + PIECE] for i in range(0, len(items), PIECE)]
    if len(pieces) < 2:
        return every(items)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, len(pieces)), "patchindex-decode") as pool:
        return [found for part in pool.map(every, pieces) for found in part]
