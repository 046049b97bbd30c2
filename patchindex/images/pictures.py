"""Images that Pillow decodes: which are refused, and a source that decodes on demand on all cores."""

from __future__ import annotations

import functools
import os
import re
import struct
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, TypeVar

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from patchindex.errors import InputError, Option, SourceNotFoundError
from patchindex.images.source import ImageSource
from patchindex.images.transform import Transform
from patchindex.images.unreadable import first_line, unreadable
from patchindex.images.zipped import ZIP_DAMAGE

__all__ = [
    "BadImageError",
    "PictureSource",
    "check_depth",
    "decoding",
    "in_parallel",
    "is_gray",
    "load_late_exif",
    "open_picture",
    "upright",
]

GRAY_MODES = frozenset({"1", "L", "LA", "La"})
# Without modes of more than 8 bits ("I", "I;16", "F"): Pillow clips them to 255 when it converts.
MODES = GRAY_MODES | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
# Pillow silently keeps the high byte of colours with 16 bits per channel; only the raw mode of its decoder
# shows them. A raw mode that ends in ;16 alone is a BMP with 5, 6 and 5 bits.
DEEP = re.compile(r";16[BLN]")
PIXELS = re.compile(r"\d+")  # the first number of Pillow's message
TIFF_BITS = 258  # the TIFF tag with the bits per channel
# The errors that items of a data set raise for damaged files. Other errors are bugs of the data set.
DAMAGE = (*ZIP_DAMAGE, KeyError, SyntaxError)
# Without EPS, for which Pillow runs Ghostscript. A TGA has no signature, so that any file may pass for one.
PILLOW_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM")
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A damaged header may announce pixels that would fill the memory before the damage is found. A PNG of one bit
# per pixel, the densest format in use, holds 8256 pixels per byte.
MANY_PIXELS, PIXELS_PER_BYTE = 1 << 24, 1 << 14
SIDEWAYS = 5  # this orientation and all after it exchange height and width
LATE_EXIF = 1 << 16  # bytes at the end of a PNG that may hold EXIF data, which ImageMagick writes there

PIECE = 16  # items per task of a thread

T = TypeVar("T")
R = TypeVar("R")


class BadImageError(InputError):
    """An image whose contents cannot be used; `skip_bad` leaves it out. Other errors are never skipped."""


class PictureSource(ImageSource):
    """Images that are decoded one by one and then transformed; a subclass sets `_transform` first."""

    _transform: Transform
    _turned = False  # whether images are turned as their EXIF data say

    @abstractmethod
    def _picture(self, i: int) -> AbstractContextManager[Image.Image]:
        """Open image i."""

    @abstractmethod
    def _where(self, i: int) -> object:
        """Return the place of image i, for messages."""

    def _size(self, i: int, image: Image.Image) -> tuple[int, int]:
        """Return (height, width) of image i after it is turned upright and transformed."""
        height, width = image.height, image.width
        if self._turned and _orientation(image) >= SIDEWAYS:
            height, width = width, height
        return self._transform.size(height, width, where=self._where(i))

    def _check_size(self, i: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
        if size != expected:
            raise InputError(
                f"has {size[0]}×{size[1]} pixels, but the first image has {expected[0]}×{expected[1]}",
                where=self._where(i),
                remedy=[
                    "bring all images to one size with ",
                    Option("crop", "square"),
                    " and ",
                    Option("resize", 32),
                    ", for example",
                ],
            )

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        ids = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        result = np.empty((len(ids), *self.shape[1:]), np.uint8)
        gray = self.shape[3] == 1

        def decode(row: int) -> None:
            i = ids[row]
            with self._picture(i) as image:
                image.load()  # only then the EXIF data of each PNG are known
                self._check_size(i, self._size(i, image), self.shape[1:3])
                if self._turned:
                    image = upright(image)
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


def open_picture(file: IO[bytes], name: str, where: object, max_pixels: int | None = None) -> Image.Image:
    """Open one picture of at most 8 bits per channel; raise `BadImageError` for others and for stacks."""
    image = Image.open(file, formats=_formats(is_tga=name.lower().endswith(".tga")))
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        raise _too_large(pixels, where)
    if pixels > MANY_PIXELS and pixels > (size := file.seek(0, os.SEEK_END)) * PIXELS_PER_BYTE:
        raise BadImageError(
            f"announces {pixels:,} pixels in {size:,} bytes",
            where=where,
            remedy="copy it again, or remove it",
        )
    check_depth(image, where)
    # An MPO is a photograph with a preview, a depth map or a second view behind it.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise BadImageError(
            f"holds {getattr(image, 'n_frames', 'several')} pictures, expected one",
            where=where,
            remedy=["save each picture in a file, or leave out the file with ", Option("skip_bad", True)],
        )
    return image


@functools.cache
def _formats(*, is_tga: bool) -> tuple[str, ...]:
    """Return the formats that this Pillow has; asking it for others is an error."""
    Image.init()
    return tuple(each for each in (*PILLOW_FORMATS, *["TGA"] * is_tga) if each in Image.OPEN)


def _too_large(pixels: int, where: object) -> InputError:
    return InputError(
        f"is too large ({pixels:,} pixels)",
        where=where,
        remedy=["if the file is what you expect, allow it with ", Option("max_pixels", pixels)],
    )


def upright(image: Image.Image) -> Image.Image:
    """Return a picture turned and mirrored as its EXIF orientation says."""
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def load_late_exif(image: Image.Image) -> None:
    """Load a PNG whose EXIF data come after its pixels and may exchange height and width."""
    if not isinstance(image, PngImageFile) or image.width == image.height or image.info.get("exif"):
        return
    if (file := image.fp) is None:  # the pixels are loaded
        return
    at, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(max(at, size - LATE_EXIF))
    is_late = b"eXIf" in file.read()
    file.seek(at)
    if is_late:
        image.load()


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none, or if the EXIF data are damaged."""
    exif = image.info.get("exif")
    # Pillow turns a TIFF itself. `Image.getexif` would decode a PNG, and warn of damaged data.
    if not exif or image.format == "TIFF":
        return 1
    body = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None or len(body) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", body, 4)
    entries = body[start + 2 :]
    if len(entries) < 12:
        return 1
    (tags,) = struct.unpack_from(f"{order}H", body, start)
    for entry in range(0, min(12 * tags, len(entries) - 11), 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", entries, entry)
        if tag == ORIENTATION:
            return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    return 1


class _PixelLimit:
    """Pillow's limit of pixels, raised while images are decoded, and restored behind the last of them."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextmanager
    def raised(self, pixels: int) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._before = Image.MAX_IMAGE_PIXELS
            self._users += 1
            if Image.MAX_IMAGE_PIXELS is not None:
                Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, pixels)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    Image.MAX_IMAGE_PIXELS = self._before


_limit = _PixelLimit()


@contextmanager
def decoding(
    where: object, *, errors: tuple[type[Exception], ...] = DAMAGE, max_pixels: int | None = None
) -> Iterator[None]:
    """Turn errors of decoders into `BadImageError` and errors of the system into `InputError`."""
    try:
        with nullcontext() if max_pixels is None else _limit.raised(max_pixels):
            yield
    except InputError:
        raise
    except MemoryError as error:  # a damaged file too may announce a block of gigabytes
        raise InputError(
            "needs more memory than there is", where=where, remedy="repair or remove it, or free memory"
        ) from error
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            "is not there any more", where=where, remedy="do not move the images while they are read"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(int(PIXELS.findall(str(error))[0]), where) from error
    except errors as error:
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
