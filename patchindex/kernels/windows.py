"""Tables of the windows of a geometry, as the kernels that compare single windows take them.

`scan_pixels` compares a pixel with every training window, `neighbour_logits` with retrieved windows that are
moved by up to `REACH` pixels. All differences between score machines are in the tables, so the kernels have
no cases: `query_y` to `train_x` hold padding and wrapping, `range_y` and `range_x` hold position classes.

`scan_all` takes other tables (`patchindex.exact.tables.Full`), because it slides sums over all windows and
never looks at a single one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.geometry import Geometry

__all__ = ["REACH", "WindowTables"]

REACH = 1  # pixels by which a retrieved window is moved, in each direction


class WindowTables(NamedTuple):
    """The windows of a geometry.

    Entry i of the tables `query_y` to `train_x` is the pixel at position `i - k // 2 - REACH`, wrapped around
    where the windows are, or -1 for padding.
    """

    k: int
    height: int
    width: int
    channels: int
    border: int  # first training position along either axis: k // 2 for windows inside the image, else 0
    query_y: np.ndarray  # int64 (H + 2 (k // 2 + REACH),)
    query_x: np.ndarray
    train_y: np.ndarray
    train_x: np.ndarray
    range_y: (
        np.ndarray
    )  # int64 (H, 2): the training positions [lo, hi) that a query position is compared with
    range_x: np.ndarray
    y_of: np.ndarray  # int64 (H W,): row of a raster number; dividing by W takes longer
    x_of: np.ndarray  # int64 (H W,): column of a raster number
    bits: int  # that hold a raster number

    @classmethod
    def of(cls, geometry: Geometry, channels: int) -> WindowTables:
        """Make the tables of a geometry."""
        y, x, margin = geometry.y, geometry.x, geometry.k // 2 + REACH
        wrapped = y.train_padding == "wrapped"
        y_of, x_of = np.divmod(np.arange(y.size * x.size), x.size)
        return cls(
            k=geometry.k,
            height=y.size,
            width=x.size,
            channels=channels,
            border=y.train_positions[0],
            query_y=y.pixels(margin, y.circular),
            query_x=x.pixels(margin, x.circular),
            train_y=y.pixels(margin, wrapped),
            train_x=x.pixels(margin, wrapped),
            range_y=y.ranges,
            range_x=x.ranges,
            y_of=y_of,
            x_of=x_of,
            bits=(y.size * x.size - 1).bit_length(),
        )

    def pixels_of(self, keys: np.ndarray) -> np.ndarray:
        """Return the pixels, raster numbers, of keys of `patchindex.kernels.neighbours`."""
        return keys & ((1 << self.bits) - 1)

    def images_of(self, keys: np.ndarray) -> np.ndarray:
        """Return the training images of keys."""
        return keys >> 2 * self.bits
