"""Crop, resize and grayscale of one image, by Pillow, the same for every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index as as_int
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from patchindex.checks import as_bool
from patchindex.errors import InputError, Option

__all__ = ["Size", "Transform"]

Size: TypeAlias = int | Sequence[int]  # of a square, or (height, width), in pixels
Square = Literal["square"]  # a crop to the shorter side of each image

BACKGROUND = "white"  # under transparent pixels
LARGEST_SIDE = 16384  # pixels; a larger number is a typing mistake


@dataclass(frozen=True)
class Transform:
    """A centre crop, then grayscale, then an antialiased (Lanczos) resize, each optional.

    Sizes are (height, width) in pixels; a crop may be "square": the shorter side of each image.
    """

    crop: tuple[int, int] | Square | None = None
    resize: tuple[int, int] | None = None
    grayscale: bool = False

    @classmethod
    def parse(cls, crop: Size | str | None, resize: Size | None, grayscale: bool) -> Transform:
        """Return the transform that the parameters of `open_images` mean; an int means a square."""
        square: Square | None = "square" if isinstance(crop, str) and crop == "square" else None
        return cls(
            square or _as_size(crop, "crop"), _as_size(resize, "resize"), as_bool(grayscale, "grayscale")
        )

    def size(self, height: int, width: int, *, where: object) -> tuple[int, int]:
        """Return (height, width) of a transformed image; InputError if the crop is larger than the image."""
        crop = self._crop(height, width)
        if crop[0] > height or crop[1] > width:
            raise InputError(
                f"a crop of {crop[0]}×{crop[1]} does not fit into {height}×{width} pixels",
                where=where,
                remedy=["give a smaller crop, or ", Option("crop", "square")],
            )
        return self.resize or crop

    def _crop(self, height: int, width: int) -> tuple[int, int]:
        if self.crop == "square":
            return min(height, width), min(height, width)
        return self.crop or (height, width)

    def apply(self, image: Image.Image, mode: str) -> np.ndarray:
        """Return an image of any 8-bit mode, transformed: uint8, (H, W, 1) for mode "L", (H, W, 3) for "RGB".

        Transparent pixels are blended with white.
        """
        if self.crop is not None:
            height, width = self._crop(image.height, image.width)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        if image.has_transparency_data:
            # Editors leave any colours under transparent pixels.
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
        if image.mode != mode:
            image = image.convert(mode)
        if self.resize is not None:
            image = image.resize((self.resize[1], self.resize[0]), Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(image.height, image.width, -1)


def _as_size(value: Any, parameter: str) -> tuple[int, int] | None:
    if value is None:
        return None
    given: Sequence[Any] = value if isinstance(value, Sequence) else (value, value)
    try:
        sides = tuple(as_int(side) for side in given)
    except TypeError:
        sides = ()
    if len(sides) != 2 or not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise InputError(
            f"{value!r} is not a size in pixels",
            parameter=parameter,
            remedy="give an integer, or a pair (height, width), from 1 to 16384",
        )
    return (sides[0], sides[1])
