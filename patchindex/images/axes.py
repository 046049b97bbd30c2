"""The axes of an array of images: (N, H, W), (N, H, W, C) or (N, C, H, W); or one image without N."""

from __future__ import annotations

from typing import Any

import numpy as np

from patchindex.errors import InputError, Option

__all__ = ["AXES", "in_axes"]

AXES = ("NHW", "NHWC", "NCHW", "HW", "HWC", "CHW")
CHANNELS = (1, 3)


def in_axes(
    array: Any, axes: str | None, name: str, *, saved: bool
) -> tuple[Any, tuple[int, int, int, int], bool]:
    """Return the array with the axis of images, its shape as (N, H, W, C), and whether channels come first.

    Without `axes`, (N, H, W) and (N, H, W, C) are expected. A shape that fits another order as well raises
    `InputError`. An array that is `saved` in a file may be one image with its channels first.
    """
    shape = tuple(array.shape or ())
    if axes is None:
        axes = _guess(shape, name, saved)
    elif len(axes) != len(shape):
        raise InputError(
            f"shape {shape} has {len(shape)} axes, not the {len(axes)} of {axes}",
            where=name,
            remedy=["give ", Option("axes", next((a for a in AXES if len(a) == len(shape)), "NHWC"))],
        )
    if "N" not in axes:
        array, shape, axes = np.asarray(array)[None], (1, *shape), f"N{axes}"
    if axes == "NHW":
        return array, (*shape, 1), False
    if axes == "NCHW":
        count, channels, height, width = shape
        return array, (count, height, width, channels), True
    return array, shape, False


def _guess(shape: tuple[int, ...], name: str, saved: bool) -> str:
    """Return the axes of a shape, or refuse it."""
    if len(shape) not in (3, 4):
        remedy: list[str | Option] = ["reshape the images, for example x.reshape(-1, 28, 28)"]
        if len(shape) == 2:
            remedy += [", or give ", Option("axes", "HW"), " for one image"]
        raise InputError(f"shape {shape} is not (N, H, W) or (N, H, W, C)", where=name, remedy=remedy)
    if len(shape) == 3:
        if shape[2] in CHANNELS and shape[1:] != (1, 1):
            raise _unclear(shape, name, "NHW", "HWC")
        if saved and shape[0] == 3:
            raise _unclear(shape, name, "NHW", "CHW")
        return "NHW"
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    # One pixel wide and high, with as many channels: both readings are the same.
    if first and last and shape[1:] != (1, 1, 1) and 0 not in shape:
        raise _unclear(shape, name, "NHWC", "NCHW")
    if last:
        return "NHWC"
    remedy = ["give images with 1 or 3 channels, the channels last"]
    if first:
        remedy = ["it looks like (N, C, H, W): give ", Option("axes", "NCHW"), ", or x.transpose(0, 2, 3, 1)"]
    elif shape[3] == 4:
        remedy = ["drop the alpha channel: x[..., :3]"]
    raise InputError(f"shape {shape} is not (N, H, W, 1) or (N, H, W, 3)", where=name, remedy=remedy)


def _unclear(shape: tuple[int, ...], name: str, one: str, other: str) -> InputError:
    return InputError(
        f"shape {shape} may be ({', '.join(one)}) or ({', '.join(other)})",
        where=name,
        remedy=["say which, with ", Option("axes", one), " or ", Option("axes", other)],
    )
