"""Patches that pixels are known to be compared with, and how a sample leaves them out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.compile import compiled, lean
from patchindex.kernels.simd import LANES

__all__ = ["KnownPatches", "Placed", "Units", "find_members", "remove"]


class KnownPatches(NamedTuple):
    """Patches that pixels are known to be compared with: arrays of shape (n,).

    Attributes
    ----------
    pixel : array of int32
        Raster number of the pixel.
    image : array of int32
        Training image of the patch.
    place : array of int32
        Raster number of the patch's centre in it, `y W + x`.
    logit : array of float32
    """

    pixel: np.ndarray
    image: np.ndarray
    place: np.ndarray
    logit: np.ndarray


class Placed(NamedTuple):
    """KnownPatches by the stratum that they are in, ascending, as `remove` takes them but for the stratum."""

    stratum: np.ndarray
    pixel: np.ndarray
    lane: np.ndarray
    logit: np.ndarray
    centre: np.ndarray


class Units(NamedTuple):
    """Which class of offsets compares a query position with a training position.

    Attributes
    ----------
    classes : int
        A stratum is one of so many of a tile.
    y_of, x_of : array of int64, shape (H * W,)
        Row and column of a raster number.
    rows, columns : array of int64, shape (H, H) and (W, W)
        What a pair of rows, and one of columns, add to the number of the class.
    """

    classes: int
    y_of: np.ndarray
    x_of: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@lean
def find_members(known, asked, units, images, first, end, tiles, wanted, found, strata, count):  # type: ignore[no-untyped-def]
    """Write which members are of pixels asked for and in wanted strata (masks), and these strata.

    Those of `images[j]`, which is in tile `tiles[j]`, are `first[j]` to `end[j] - 1`; `count[0]` says how
    many were found.
    """
    n = 0
    for j in range(len(images)):
        for i in range(first[j], end[j]):
            pixel, place = known.pixel[i], known.place[i]
            stratum = np.int64(tiles[j]) * units.classes
            stratum += units.rows[units.y_of[pixel], units.y_of[place]]
            stratum += units.columns[units.x_of[pixel], units.x_of[place]]
            found[n], strata[n] = i, stratum
            n += int(asked[pixel] and wanted[stratum])
    count[0] = n


@compiled
def remove(mine, channels, pixels, lanes, logits, centres):  # type: ignore[no-untyped-def]
    """Take members out of a thread's sums: pixel, image of the tile, logit and centre (n, C) of each.

    Logits and centres as in the sums. What was not added, or skipped, may be taken out: it is nothing.
    """
    for i in range(len(pixels)):
        reference = mine.top[pixels[i]]
        if logits[i] - reference < -mine.threshold:
            continue
        w = np.float32(2.0 ** (logits[i] - reference))
        at = pixels[i] * (2 + channels) * LANES + lanes[i] % LANES
        mine.sums[at] -= w
        mine.sums[at + LANES] -= w * w
        for c in range(channels):
            mine.sums[at + (2 + c) * LANES] -= w * centres[i, c]
