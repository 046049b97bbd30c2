"""Float images: which uint8 images their values stand for.

Floats in [0, 1] or in [-1, 1] are read if they are exactly scaled uint8 images. A value below 0 means
[-1, 1]. A value that is not an odd multiple of 1/255 means [0, 1]: [-1, 1] has only odd multiples. If a
source has neither, both readings fit, and the caller must choose. All files of a source are read alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from patchindex.errors import InputError, Option

__all__ = ["VALUES", "FloatValues", "Scaling", "choose_scaling"]


@dataclass(frozen=True)
class Scaling:
    """A scaling of uint8 images to floats x: `(x + offset) * factor` gives the uint8 image back.

    Messages name the range of x, `span`, and the formula, `code`.
    """

    offset: float
    factor: float
    span: str
    code: str

    def levels(self, x: np.ndarray) -> np.ndarray:
        """Return the values on the scale of uint8, before they are rounded."""
        return (x + self.offset) * self.factor


UNIT = Scaling(0.0, 255.0, "[0, 1]", "(x * 255)")
SIGNED = Scaling(1.0, 127.5, "[-1, 1]", "((x + 1) * 127.5)")
VALUES = {"unit": UNIT, "signed": SIGNED}  # the names in `open_images(values=...)`


@dataclass(frozen=True)
class FloatValues:
    """The floats of one array: the smallest of them, and the scalings that explain all of them.

    `inexact` has, for each other scaling, the first image that it does not explain.
    """

    name: str
    low: float
    fits: tuple[Scaling, ...]
    inexact: dict[Scaling, int]

    @classmethod
    def find(cls, blocks: Iterable[tuple[int, np.ndarray]], dtype: np.dtype, name: str) -> FloatValues:
        """Read all images, as blocks (id of the first image, images), or raise `InputError`."""
        eps = float(np.finfo(dtype).eps)
        low, high = np.inf, -np.inf
        inexact: dict[Scaling, int] = {}
        for start, raw in blocks:
            x = raw.astype(np.float64).reshape(len(raw), -1)
            finite = np.isfinite(x).all(axis=1)
            if not finite.all():
                raise InputError(
                    f"image {start + int(np.argmin(finite))} holds NaN or infinity",
                    where=name,
                    remedy="remove or repair it: images must be finite",
                )
            low, high = min(low, float(x.min())), max(high, float(x.max()))
            if low < -1 - 2 * eps or high > 1 + 2 * eps:
                continue  # the message below needs the range of all images
            # Until a negative value is found, both scalings are possible.
            for scaling in [SIGNED] if low < 0 else [UNIT, SIGNED]:
                if scaling not in inexact:
                    levels = scaling.levels(x)
                    # The user scaled in the dtype of the array: rounding leaves errors under 255 eps.
                    wrong = (np.abs(levels - np.rint(levels)) > 255 * eps).any(axis=1)
                    if wrong.any():
                        inexact[scaling] = start + int(np.argmax(wrong))
        if low < -1 - 2 * eps or high > 1 + 2 * eps:
            raise InputError(
                f"float values from {low:.9g} to {high:.9g} are neither in [0, 1] nor in [-1, 1]",
                where=name,
                remedy="give uint8 images: x.round().astype(np.uint8)"
                if low >= 0 and high <= 255
                else "scale the images to uint8",
            )
        possible = [SIGNED] if low < 0 else [UNIT, SIGNED]
        fits = tuple(scaling for scaling in possible if scaling not in inexact)
        if not fits:
            raise inexact_values(possible[0], inexact[possible[0]], name)
        return cls(name, low, fits, inexact)


def inexact_values(scaling: Scaling, image: int, name: str) -> InputError:
    """Return the error for an image that a scaling does not explain."""
    return InputError(
        f"image {image} is not exactly a uint8 image scaled to {scaling.span}",
        where=name,
        remedy=f"round to uint8 yourself: {scaling.code}.round().astype(np.uint8)",
    )


def choose_scaling(arrays: Sequence[FloatValues], wanted: str | None) -> Scaling:
    """Return the scaling of all arrays of a source, or raise `InputError`.

    `wanted` is "unit", "signed" or None. Without it, one array that has one reading decides for all.
    """
    if wanted is not None:
        scaling = VALUES[wanted]
        bad = next((array for array in arrays if scaling not in array.fits), None)
        if bad is None:
            return scaling
        if scaling is UNIT and bad.low < 0:
            raise InputError(f"has values below 0 ({bad.low:.9g})", where=bad.name, remedy=_remedy("signed"))
        raise inexact_values(scaling, bad.inexact[scaling], bad.name)
    decided = [array for array in arrays if len(array.fits) == 1]
    if not decided:
        # 1 is 255 by both readings.
        unclear = next((array for array in arrays if array.low < 1), None)
        if unclear is None:
            return UNIT
        raise InputError(
            "its floats may be uint8 images scaled to [0, 1] or to [-1, 1]: both readings fit",
            where=unclear.name,
            remedy=["say which, with ", Option("values", "unit"), " or ", Option("values", "signed")],
        )
    scaling = decided[0].fits[0]
    other = next((array for array in arrays if scaling not in array.fits), None)
    if other is not None:
        raise InputError(
            f"images are scaled to {other.fits[0].span}, but {decided[0].name} to {scaling.span}",
            where=other.name,
            remedy="scale all files alike, or save them as uint8",
        )
    return scaling


def _remedy(value: str) -> list[str | Option]:
    return ["give ", Option("values", value), ", or scale the images to uint8"]
