"""Patches that are known to be heavy, found in the strata of a random sample and taken out of its sums.

The near field has these patches with exact logits; the sample must not count them again. A stratum is a class
of offsets in a tile of images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.compile import compiled, lean
from patchindex.kernels.simd import LANES

__all__ = ["KnownPatches", "Placed", "StratumTables", "find_members", "remove"]


class KnownPatches(NamedTuple):
    """Patches that pixels are known to be compared with."""

    pixel: np.ndarray  # int32 (n,): raster number of the pixel
    image: np.ndarray  # int32 (n,): training image of the patch
    place: np.ndarray  # int32 (n,): raster number of the patch's centre in the image, `y W + x`
    logit: np.ndarray  # float32 (n,)


class Placed(NamedTuple):
    """Known patches with their strata, in ascending order of strata: arguments of `remove`."""

    stratum: np.ndarray
    pixel: np.ndarray
    lane: np.ndarray
    logit: np.ndarray
    centre: np.ndarray


class StratumTables(NamedTuple):
    """Tables that give the stratum of a query position and a training position.

    The class of offsets of positions (y, x) and (i, j) is `rows[y, i] + columns[x, j]`.
    """

    classes: int  # strata per tile
    y_of: np.ndarray  # int64 (H W,): row of a raster number
    x_of: np.ndarray  # int64 (H W,): column of a raster number
    rows: np.ndarray  # int64 (H, H)
    columns: np.ndarray  # int64 (W, W)


@lean
def find_members(known, asked, tables, images, first, end, tiles, wanted, found, strata, count):  # type: ignore[no-untyped-def]
    """Write the numbers and strata of the known patches of asked pixels in wanted strata (two masks).

    `first[j]` to `end[j] - 1` are the patches of `images[j]`, which is in tile `tiles[j]`. `count[0]` is set
    to the number found.
    """
    n = 0
    for j in range(len(images)):
        for i in range(first[j], end[j]):
            pixel, place = known.pixel[i], known.place[i]
            stratum = np.int64(tiles[j]) * tables.classes
            stratum += tables.rows[tables.y_of[pixel], tables.y_of[place]]
            stratum += tables.columns[tables.x_of[pixel], tables.x_of[place]]
            found[n], strata[n] = i, stratum
            n += int(asked[pixel] and wanted[stratum])
    count[0] = n


@compiled
def remove(sums, channels, pixels, lanes, logits, centres):  # type: ignore[no-untyped-def]
    """Subtract members from a thread's sums: pixel, lane, logit and centre (n, C) of each.

    Members below the threshold, which the scan skipped, are skipped here too.
    """
    for i in range(len(pixels)):
        reference = sums.top[pixels[i]]
        if logits[i] - reference < -sums.threshold:
            continue
        weight = np.float32(2.0 ** (logits[i] - reference))
        at = pixels[i] * (2 + channels) * LANES + lanes[i] % LANES
        sums.sums[at] -= weight
        sums.sums[at + LANES] -= weight * weight
        for c in range(channels):
            sums.sums[at + (2 + c) * LANES] -= weight * centres[i, c]
