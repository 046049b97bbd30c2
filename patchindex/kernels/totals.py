"""The sums of threads and tasks, moved into float64 totals and merged there.

A total is relative to 2^top of its pixel. A power of two scales a sum without rounding.
"""

from __future__ import annotations

import numpy as np

from patchindex.kernels.compile import compiled, inlined
from patchindex.kernels.scan import NOTHING_YET
from patchindex.kernels.simd import LANES, load_lanes, splat_lanes, store, total

__all__ = ["flush", "flush_sample", "merge", "merge_sample"]


@inlined
def raise_top(tops, pixel, top):  # type: ignore[no-untyped-def]
    """Raise the reference of a pixel to `top`; return the factors of sums at the old one and at `top`."""
    before = tops[pixel]
    if top > before:
        tops[pixel] = top
        return 2.0 ** max(before - top, -500.0), 1.0
    return 1.0, 1.0 if top == before else 2.0 ** max(top - before, -500.0)  # a power takes most of the time


@inlined
def add_total(totals, pixel, e, new, before, added):  # type: ignore[no-untyped-def]
    """Add a sum to a total, each times its factor; squares of weights (e = 1) take the factors squared."""
    if e == 1:
        totals[pixel, e] = totals[pixel, e] * before * before + new * added * added
    else:
        totals[pixel, e] = totals[pixel, e] * before + new * added


@compiled
def flush(sums, channels, tops, totals):  # type: ignore[no-untyped-def]
    """Move a thread's sums into float64 totals (pixels, 2 + C), relative to 2^tops, and set them to 0."""
    for pixel in range(len(sums.top)):
        at = pixel * (2 + channels) * LANES
        weight = total(load_lanes(sums.sums, at))
        if weight == 0.0:
            continue
        before, added = raise_top(tops, pixel, np.float64(sums.top[pixel]))
        for e in range(2 + channels):
            new = total(load_lanes(sums.sums, at + e * LANES))
            add_total(totals, pixel, e, new, before, added)
            store(sums.sums, at + e * LANES, splat_lanes(np.float32(0)))


@compiled
def merge(found_tops, found, tops, totals):  # type: ignore[no-untyped-def]
    """Add totals (pixels, 2 + C), relative to 2^found_tops, to totals relative to 2^tops."""
    for pixel in range(len(tops)):
        if found[pixel, 0] == 0.0:
            continue
        before, added = raise_top(tops, pixel, found_tops[pixel])
        for e in range(found.shape[1]):
            add_total(totals, pixel, e, found[pixel, e], before, added)


@compiled
def flush_sample(sums, channels, tops, totals, squares):  # type: ignore[no-untyped-def]
    """Move the sums as `flush` does, and add the products of the sums of each lane to `squares`.

    A lane has the images of one part of the sample; the standard error comes from the differences between
    lanes. `squares` (pixels, 1 + 2 C) has W^2, W times the sum of each channel, and the squares of these.
    """
    for pixel in range(len(sums.top)):
        if sums.top[pixel] == NOTHING_YET:
            continue
        at = pixel * (2 + channels) * LANES
        before, added = raise_top(tops, pixel, np.float64(sums.top[pixel]))
        weight = load_lanes(sums.sums, at)
        squares[pixel, 0] = squares[pixel, 0] * before * before + total(weight * weight) * added * added
        for e in range(2 + channels):
            part = load_lanes(sums.sums, at + e * LANES)
            new = total(part)
            add_total(totals, pixel, e, new, before, added)
            if e > 1:
                one, two = total(weight * part), total(part * part)
                j = e - 1
                squares[pixel, j] = squares[pixel, j] * before * before + one * added * added
                j += channels
                squares[pixel, j] = squares[pixel, j] * before * before + two * added * added
            store(sums.sums, at + e * LANES, splat_lanes(np.float32(0)))


@compiled
def merge_sample(found_tops, found, found_squares, tops, totals, squares):  # type: ignore[no-untyped-def]
    """Add the totals and squares of `flush_sample`, relative to 2^found_tops, to others, as `merge` does."""
    for pixel in range(len(tops)):
        if found_tops[pixel] <= NOTHING_YET:
            continue
        before, added = raise_top(tops, pixel, found_tops[pixel])
        for e in range(found.shape[1]):
            add_total(totals, pixel, e, found[pixel, e], before, added)
        for e in range(found_squares.shape[1]):
            squares[pixel, e] = squares[pixel, e] * before * before + found_squares[pixel, e] * added * added
