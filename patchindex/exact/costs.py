"""The cost of a scan by the CPU kernel: the plan that it follows, and its expected seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from patchindex.exact.tables import Plan
from patchindex.geometry import Geometry
from patchindex.kernels.simd import BLOCK

__all__ = ["expected_seconds", "full_cost", "lanes", "pixel_cost", "plan_of"]

# Nanoseconds of one thread (AVX-512) for a block of products, and for turning a block of sums into weights,
# fitted to `benchmarks/exact.py --parts pixels`. Their ratios cut the work into tasks and choose between the
# kernels; they change no result.
ALL_PRODUCTS, ALL_MEMBERS = 1.05, 12.5  # `scan_all`
PIXEL_PRODUCTS, PIXEL_MEMBERS = 1.2, 28.0  # `scan_pixels`

plan_of = lru_cache(maxsize=32)(Plan)  # its tables take a few milliseconds to make


def lanes(geometry: Geometry, images: int) -> int:
    """Choose the number of images of a tile.

    Few images leave less of a tile empty and keep the tile in the cache. Many images waste less at the ends
    of the rows, where a block of columns sticks out. A single column offset (LS) needs a whole block.
    """
    if len(geometry.x.offsets) == 1:
        return BLOCK
    return 16 if images <= 16 or max(geometry.size) > 48 else 32


def full_cost(plan: Plan) -> float:
    """Return the nanoseconds of a tile and a query in `scan_all`."""
    full = plan.full
    products = 2 * (full.rows[:, :2] >= 0).sum()
    ready = (full.query_rows[:, 2] >= 0).sum()
    return float(
        full.slots.sum() * products * plan.channels * ALL_PRODUCTS + full.steps.sum() * ready * ALL_MEMBERS
    )


def pixel_cost(plan: Plan) -> float:
    """Return the nanoseconds of a tile and a pixel in `scan_pixels`."""
    rows, columns = (int(np.diff(axis.ranges).max()) for axis in (plan.geometry.y, plan.geometry.x))
    window = plan.geometry.k**2 * plan.channels
    return rows * math.ceil(columns / plan.width) * (window * PIXEL_PRODUCTS + PIXEL_MEMBERS)


def expected_seconds(geometry: Geometry, channels: int, images: int, pixels: Sequence[int]) -> float:
    """Return the expected seconds on one thread of a scan of `pixels` wanted pixels of each noisy image."""
    plan = plan_of(geometry, channels, lanes(geometry, images))
    tiles = math.ceil(images / plan.lanes)
    each = [min(n * pixel_cost(plan), full_cost(plan)) for n in pixels]
    return sum(each) * tiles * 1e-9
