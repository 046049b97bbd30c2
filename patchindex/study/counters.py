"""Counters of features that can be counted: limbs of a drawn figure, strokes and holes of a digit.

A counter takes images (n, C, H, W) in [-1, 1] and returns one whole number per image. scipy comes with the
extra `studies`.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from patchindex.checks import check_least
from patchindex.errors import InputError
from patchindex.random_streams import random_stream

__all__ = ["count_holes", "count_limbs", "count_strokes", "draw_figures"]

FINE = 8  # pixels of the drawing per pixel of the image, along each axis
BODY, LIMB, THICKNESS = (4.0, 5.2), (4.5, 6.5), (2.0, 2.8)  # radius, length beyond the body, width; pixels
APART = 50.0  # degrees between neighbouring limbs, at least
MARGIN = 1.0  # pixels between the body and the limbs that are counted
LEAST = 3  # pixels of a feature: smaller parts are specks of noise


def draw_figures(n: int, *, size: int = 32, limbs: int = 4, seed: int = 0) -> np.ndarray:
    """Draw white figures on black: a disc with straight limbs at random angles.

    Place, radius, angles, and the length and width of each limb vary. Neighbouring limbs are at least 50
    degrees apart. Figure i depends on the seed and on i only.

    Parameters
    ----------
    n : int
        Number of figures, at least 1.
    size : int
        Height and width, at least 32 pixels.
    limbs : int
        Limbs per figure, 1 to 6.
    seed : int

    Returns
    -------
    numpy.ndarray, shape (n, size, size, 1), uint8

    Raises
    ------
    InputError
        When a number is out of range.

    Examples
    --------
    >>> figures = draw_figures(2, limbs=3)
    >>> figures.shape, figures.dtype, count_limbs(_unit(figures)).tolist()
    ((2, 32, 32, 1), dtype('uint8'), [3, 3])
    """
    check_least(n=(n, 1), size=(size, 32), limbs=(limbs, 1, 6), seed=(seed, 0))
    return np.stack([_figure(size, limbs, random_stream(seed, i)) for i in range(n)])


def _figure(size: int, limbs: int, rng: np.random.Generator) -> np.ndarray:
    """Return one figure, (size, size, 1), anti-aliased by drawing at `FINE` times the size."""
    canvas = Image.new("L", (size * FINE, size * FINE))
    pen = ImageDraw.Draw(canvas)
    radius = rng.uniform(*BODY)
    reach = radius + LIMB[1] + THICKNESS[1] / 2
    centre = rng.uniform(reach, size - reach, 2)
    # Gaps between limbs: the least gap, and a random share of the rest of the circle.
    gaps = APART + (360 - limbs * APART) * rng.dirichlet(np.full(limbs, 2.0))
    for angle in np.deg2rad(rng.uniform(0, 360) + np.cumsum(gaps)):
        width, tip = rng.uniform(*THICKNESS), radius + rng.uniform(*LIMB)
        end = centre + tip * np.array([np.cos(angle), np.sin(angle)])
        pen.line([*(centre * FINE), *(end * FINE)], fill=255, width=round(width * FINE))
        _disc(pen, end, width / 2)
    _disc(pen, centre, radius)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX))[..., None]


def _disc(pen: ImageDraw.ImageDraw, centre: np.ndarray, radius: float) -> None:
    pen.ellipse([*((centre - radius) * FINE), *((centre + radius) * FINE)], fill=255)


def count_limbs(images: Tensor) -> np.ndarray:
    """Count the limbs of white figures on black: connected parts of the figure outside its body.

    The body is the largest disc inside the ink: its centre is the maximum of the distance transform. A part
    outside the disc, enlarged by `MARGIN` = 1 pixel, is a limb when it has at least `LEAST` = 3 pixels. Parts
    that do not touch the figure count as well.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W), in [-1, 1]
        The ink is where the mean over channels is above 0.

    Returns
    -------
    numpy.ndarray, shape (n,), int64

    Examples
    --------
    >>> count_limbs(_unit(draw_figures(1, limbs=4))).tolist()
    [4]
    """
    ndimage = _ndimage()

    def count(ink: np.ndarray) -> int:
        # Ink at the border of the image is no wider than what the image shows.
        depth = ndimage.distance_transform_edt(np.pad(ink, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        rows, columns = np.ogrid[: ink.shape[0], : ink.shape[1]]
        outside = np.hypot(rows - y, columns - x) > depth.max() + MARGIN
        return _parts(ink & outside)

    return np.array([count(ink) for ink in _ink(images)], np.int64)


def count_strokes(images: Tensor) -> np.ndarray:
    """Count the connected parts of ink, of at least 3 pixels; pixels that touch at a corner are connected.

    Parameters and result are as for `count_limbs`.

    Examples
    --------
    >>> import torch
    >>> image = torch.full((1, 1, 8, 8), -1.0)
    >>> image[..., 1:3, 1:7] = image[..., 5:7, 1:7] = 1  # an equals sign
    >>> count_strokes(image).tolist()
    [2]
    """
    return np.array([_parts(ink) for ink in _ink(images)], np.int64)


def count_holes(images: Tensor) -> np.ndarray:
    """Count the holes of the ink: parts of the background that do not reach the border of the image.

    Background pixels are connected along edges only. A hole of one pixel counts. Parameters and result are as
    for `count_limbs`.

    Examples
    --------
    >>> import torch
    >>> image = torch.full((1, 1, 7, 7), -1.0)
    >>> image[..., 1:6, 1:6] = 1
    >>> image[..., 2:5, 2:5] = -1  # a ring
    >>> count_holes(image).tolist()
    [1]
    """
    ndimage = _ndimage()
    # A border of background joins all background parts that reach the border of the image.
    return np.array([ndimage.label(np.pad(~ink, 1, constant_values=True))[1] - 1 for ink in _ink(images)])


def _parts(ink: np.ndarray) -> int:
    """Return the number of connected parts of at least `LEAST` pixels."""
    labels, count = _ndimage().label(ink, np.ones((3, 3)))
    return int((np.bincount(labels.ravel(), minlength=count + 1)[1:] >= LEAST).sum())


def _ink(images: Tensor) -> np.ndarray:
    return np.asarray(images.detach().cpu().mean(1) > 0)


def _unit(images: np.ndarray) -> Tensor:
    """Return uint8 images (n, H, W, C) as floats (n, C, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()


def _ndimage() -> ModuleType:
    """Return `scipy.ndimage`, or raise an InputError if scipy is not installed."""
    try:
        import scipy.ndimage
    except ImportError:
        remedy = "pip install 'patchindex[studies]'"
        raise InputError("scipy is not installed", where="counters", remedy=remedy) from None
    module: ModuleType = scipy.ndimage
    return module
