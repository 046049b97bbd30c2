"""Crop, resize and grayscale, by Pillow, the same for every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index as as_int
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from PIL import Image

from patchindex.errors import InputError
from patchindex.images.source import ImageSource

__all__ = ["Size", "Square", "Transform", "TransformedSource", "as_size", "transformed"]

Size: TypeAlias = int | Sequence[int]  # of a square, or (height, width), in pixels
Square = Literal["square"]  # a crop to the shorter side of each image

LARGEST_SIDE = 16384  # pixels; a larger number is a typing mistake


@dataclass(frozen=True)
class Transform:
    """A centre crop, then grayscale, then an antialiased (Lanczos) resize, each optional.

    Parameters
    ----------
    crop, resize : tuple of int, optional
        (height, width) in pixels. A crop may be "square": the shorter side of each image.
    grayscale : bool, optional
        One channel: 0.299 R + 0.587 G + 0.114 B.

    Examples
    --------
    >>> Transform(crop=(4, 4), resize=(2, 2)).apply(Image.new("RGB", (6, 8)), "RGB").shape
    (2, 2, 3)
    >>> Transform(crop="square").size(218, 178, where="photos")
    (178, 178)
    """

    crop: tuple[int, int] | Square | None = None
    resize: tuple[int, int] | None = None
    grayscale: bool = False

    def size(self, height: int, width: int, *, where: object) -> tuple[int, int]:
        """Return (height, width) of a transformed image; InputError if the crop is larger than the image."""
        crop = self._crop(height, width)
        if crop[0] > height or crop[1] > width:
            raise InputError(
                f"a crop of {crop[0]}×{crop[1]} does not fit into {height}×{width} pixels",
                where=where,
                remedy='give a smaller crop, or crop="square"',
            )
        return self.resize or crop

    def _crop(self, height: int, width: int) -> tuple[int, int]:
        if self.crop == "square":
            return min(height, width), min(height, width)
        return self.crop or (height, width)

    def apply(self, image: Image.Image, mode: str) -> np.ndarray:
        """Transform one image.

        Parameters
        ----------
        image : PIL.Image.Image
            Of any 8-bit mode.
        mode : {"L", "RGB"}
            Mode of the result. Transparency is dropped, not blended.

        Returns
        -------
        numpy.ndarray
            uint8, shape (H, W, C), C 1 for "L" and 3 for "RGB".
        """
        if self.crop is not None:
            height, width = self._crop(image.height, image.width)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        if image.mode != mode:
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # Pillow warns about a transparent palette otherwise
            image = image.convert(mode)
        if self.resize is not None:
            image = image.resize((self.resize[1], self.resize[0]), Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(image.height, image.width, -1)


class TransformedSource(ImageSource):
    """Images of another source, transformed as they are read.

    Examples
    --------
    >>> from patchindex.images import open_images
    >>> open_images(np.zeros((2, 28, 28, 3), np.uint8), resize=14, grayscale=True).shape
    (2, 14, 14, 1)
    """

    def __init__(self, parent: ImageSource, transform: Transform) -> None:
        count, height, width, channels = parent.shape
        size = transform.size(height, width, where=parent.name)
        super().__init__(
            parent.name,
            (count, *size, 1 if transform.grayscale else channels),
            labels=parent.labels,
            label_names=parent.label_names,
        )
        self.chunk, self.skipped = parent.chunk, parent.skipped
        self._parent, self._transform = parent, transform

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        images = self._parent.read(index)
        mode = "L" if self.shape[3] == 1 else "RGB"
        result = np.empty((len(images), *self.shape[1:]), np.uint8)
        for row, image in enumerate(images):
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            result[row] = self._transform.apply(picture, mode)
        return result


def transformed(source: ImageSource, transform: Transform) -> ImageSource:
    """Return the transformed source; the source itself if the transform changes nothing."""
    return source if transform == Transform() else TransformedSource(source, transform)


@overload
def as_size(value: Size | None, name: Literal["resize"]) -> tuple[int, int] | None: ...


@overload
def as_size(value: Size | str | None, name: Literal["crop"]) -> tuple[int, int] | Square | None: ...


def as_size(value: Size | str | None, name: str) -> tuple[int, int] | Square | None:
    """Return a size as (height, width), checked; an int means a square, and a crop may be "square".

    Raises
    ------
    InputError
        Another value than one or two integers from 1 to 16384.

    Examples
    --------
    >>> as_size(64, "resize"), as_size((218, 178), "crop"), as_size(None, "crop"), as_size("square", "crop")
    ((64, 64), (218, 178), None, 'square')
    """
    if value is None:
        return None
    if value == "square" and name == "crop":
        return "square"
    given: Sequence[Any] = value if isinstance(value, Sequence) else (value, value)
    try:
        sides = tuple(as_int(side) for side in given)
    except TypeError:
        sides = ()
    if len(sides) != 2 or not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise InputError(
            f"{value!r} is not a size in pixels",
            parameter=name,
            remedy="give an integer, or a pair (height, width), from 1 to 16384",
        )
    return (sides[0], sides[1])
