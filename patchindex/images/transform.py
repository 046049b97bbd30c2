"""Crop, resize and grayscale, done by Pillow for every format alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index as as_int
from typing import Any, Literal, overload

import numpy as np
from PIL import Image

from patchindex.errors import InputError
from patchindex.images.source import ImageSource

__all__ = ["Square", "Transform", "TransformedSource", "as_size", "transformed"]

Square = Literal["square"]  # a crop: as large as the shorter side, whatever that is

LARGEST_SIDE = 16384  # pixels; more is a typing error


@dataclass(frozen=True)
class Transform:
    """A centre crop, then grayscale, then an antialiased (Lanczos) resize; each only if asked for.

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
        """(height, width) after the transform of images of that size; InputError if the crop is larger."""
        crop = self._crop(height, width)
        if crop[0] > height or crop[1] > width:
            raise InputError(
                f"a crop of {crop[0]}×{crop[1]} does not fit into {height}×{width} pixels",
                where=where,
                remedy='give a smaller crop, or crop="square"',
            )
        return self.resize or crop

    def _crop(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what is kept of an image of that size."""
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
            What to convert it to. Transparency is dropped, not blended.

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
    """Images of another source, cropped, resized or made gray as they are read.

    Parameters
    ----------
    parent : ImageSource
        Where the images are read from.
    transform : Transform
        What is done to them.

    Raises
    ------
    InputError
        A crop larger than the images.

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
        self._parent = parent
        self._transform = transform

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        images = self._parent.read(index)
        mode = "L" if self.shape[3] == 1 else "RGB"
        result = np.empty((len(images), *self.shape[1:]), np.uint8)
        for row, image in enumerate(images):
            # Pillow takes (H, W) for one channel.
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
            result[row] = self._transform.apply(picture, mode)
        return result


def transformed(source: ImageSource, transform: Transform) -> ImageSource:
    """Return the source seen through a transform, or the source itself where nothing is asked for."""
    return source if transform == Transform() else TransformedSource(source, transform)


@overload
def as_size(value: int | Sequence[int] | None, name: Literal["resize"]) -> tuple[int, int] | None: ...


@overload
def as_size(
    value: int | Sequence[int] | str | None, name: Literal["crop"]
) -> tuple[int, int] | Square | None: ...


def as_size(value: int | Sequence[int] | str | None, name: str) -> tuple[int, int] | Square | None:
    """Check a size given by the user: an int means a square, a pair is (height, width).

    A crop may be "square" too.

    Raises
    ------
    InputError
        Anything else but one or two integers from 1 to 16384.

    Examples
    --------
    >>> as_size(64, "resize"), as_size((218, 178), "crop"), as_size(None, "crop"), as_size("square", "crop")
    ((64, 64), (218, 178), None, 'square')
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "square" and name == "crop":
        return "square"
    given: Sequence[Any] = value if isinstance(value, Sequence) else (value, value)
    try:
        sides = tuple(as_int(side) for side in given)
    except TypeError:
        sides = ()
    if len(sides) != 2 or not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise InputError(
            f"{value!r} is not a size in pixels",
            where=name,
            remedy="give an integer, or a pair (height, width), from 1 to 16384",
        )
    return (sides[0], sides[1])
