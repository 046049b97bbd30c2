"""The exact scan on a GPU: query windows against training windows, as attention does it, in Triton.

`unfold` writes the windows of a block of training images as rows. A program of `scan_block` compares up to
`BM` query windows with a run of training windows of the same position class, `BN` at a time. It keeps a
running maximum and sums relative to it, so that nothing of the size of all pairs is in memory.
`merge_segments` adds the sums up in float64. Triton runs the same code in NumPy on a CPU if
`TRITON_INTERPRET=1` is set before the first import of Triton.

Precision: a logit is `bias + scale <q, p>`. The training window p is in grey levels: whole numbers up to 255
in size after a grey level is subtracted, which float16 holds exactly. So only the query q is split, into two
float16 parts of 11 bits each. Two products in float16 with sums in float32 are as exact as three products in
TF32 (`tf32x3`), which run at half the rate. Tensor cores truncate each sum. So they add at most 256 numbers
of a window, the low parts first; longer sums are rounded to the nearest, outside the tensor cores.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["merge_segments", "scan_block", "unfold"]


@triton.jit(do_not_specialize=["n_images", "n_places", "plane"])
def unfold(  # type: ignore[no-untyped-def]
    pixels,
    plane_biases,
    offsets,
    places,
    windows,
    columns,
    n_images,
    n_places,
    plane,
    stride,
    CHANNELS: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    """Write the windows of `BN` places of an image, with their biases and centres.

    Parameters
    ----------
    pixels : pointer to float16, shape (n_images, plane, CHANNELS)
        Training images in grey levels, padded for windows that wrap around.
    plane_biases : pointer to float32, shape (n_images, plane)
        Logit of the training window at each pixel with a query window of zeros.
    offsets : pointer to int32
        Numbers of a window relative to its centre, `stride` for each kind of window.
    places : pointer to int32, shape (n_places, 5)
        Centre in the plane, first of `offsets`, places of all classes before, places of the class, and number
        within the class.
    windows : pointer to float16, shape (n_images * n_places, stride)
        Written, class by class, and image by image within a class.
    columns : pointer to float32, shape (n_images * n_places, 4)
        Written: the bias of each window, and its centre.
    """
    tiles = tl.cdiv(n_places, BN)
    image = tl.program_id(0) // tiles
    place = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    wanted = place < n_places
    entry = places + place * 5
    centre = tl.load(entry, mask=wanted, other=0)
    offset = tl.load(entry + 1, mask=wanted, other=0)
    before = tl.load(entry + 2, mask=wanted, other=0).to(tl.int64)
    count = tl.load(entry + 3, mask=wanted, other=0)
    number = tl.load(entry + 4, mask=wanted, other=0)
    row = before * n_images + image * count + number
    at = image * plane + centre
    tl.store(columns + 4 * row, tl.load(plane_biases + at, mask=wanted, other=0.0), mask=wanted)
    for channel in tl.static_range(CHANNELS):
        value = tl.load(pixels + at * CHANNELS + channel, mask=wanted, other=0.0)
        tl.store(columns + 4 * row + 1 + channel, value.to(tl.float32), mask=wanted)
    for start in range(0, stride, BD):
        numbers = start + tl.arange(0, BD)
        kept = wanted[:, None] & (numbers < stride)[None, :]
        shift = tl.load(offsets + offset[:, None] + numbers[None, :], mask=kept, other=0)
        window = tl.load(pixels + at[:, None] * CHANNELS + shift, mask=kept, other=0.0)
        tl.store(windows + row[:, None] * stride + numbers[None, :], window, mask=kept)


@triton.jit(do_not_specialize=["n_blocks", "n_rows", "n_images"])
def scan_block(  # type: ignore[no-untyped-def]
    high,
    low,
    scales,
    windows,
    columns,
    blocks,
    segments,
    partial,
    n_blocks,
    n_rows,
    n_images,
    stride,
    CHANNELS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    REST: tl.constexpr,
    HELD: tl.constexpr,
):
    """Write the partial sums of each block of query windows and each segment of training images.

    Parameters
    ----------
    high, low : pointer to float16, shape (n_rows, stride)
        Query windows: `scales[row] * (high + low)` is the window in units of base-2 logits by grey level.
    scales : pointer to float32, shape (n_rows,)
    windows, columns : pointers
        As `unfold` writes them.
    blocks : pointer to int32, shape (n_blocks, 5)
        First row, number of rows, length of a window, places of all classes before, places of the class.
    segments : pointer to int32, shape (programs / n_blocks, 2)
        First and last + 1 image.
    partial : pointer to float32, shape (segments, 3 + CHANNELS, n_rows)
        Written: the largest logit, and the sums of weights, of their squares and of weights times centres.
    HELD : bool
        True when a program holds all its query windows, as BD + REST numbers. Else it reads `length` numbers
        of query and training windows, BD at a time.
    """
    # Programs that run at the same time share their segment, which stays in the cache.
    block = blocks + (tl.program_id(0) % n_blocks) * 5
    segment = tl.program_id(0) // n_blocks
    length = tl.load(block + 2)
    count = tl.load(block + 4)
    before = tl.load(block + 3) * n_images
    column = before + tl.load(segments + 2 * segment) * count
    end = before + tl.load(segments + 2 * segment + 1) * count
    rows = tl.load(block) + tl.arange(0, BM)
    wanted = tl.arange(0, BM) < tl.load(block + 1)
    scale = tl.load(scales + rows, mask=wanted, other=0.0)
    numbers = tl.arange(0, BD)
    at_row = rows[:, None].to(tl.int64) * stride
    at = at_row + numbers[None, :]
    if HELD:
        held_high = tl.load(high + at, mask=wanted[:, None], other=0.0)
        held_low = tl.load(low + at, mask=wanted[:, None], other=0.0)
        if REST > 0:
            rest = BD + tl.arange(0, REST)
            rest_high = tl.load(high + at_row + rest[None, :], mask=wanted[:, None], other=0.0)
            rest_low = tl.load(low + at_row + rest[None, :], mask=wanted[:, None], other=0.0)
    top = tl.full((BM,), float("-inf"), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    square = tl.zeros((BM,), tl.float32)
    centre_0 = tl.zeros((BM,), tl.float32)
    centre_1 = tl.zeros((BM,), tl.float32)
    centre_2 = tl.zeros((BM,), tl.float32)
    for first in range(column, end, BN):
        member = tl.minimum(first + tl.arange(0, BN), end - 1)
        at_member = windows + member[:, None].to(tl.int64) * stride
        if HELD:
            window = tl.load(at_member + numbers[None, :])
            logits = tl.dot(held_high, window.T, tl.dot(held_low, window.T)) * scale[:, None]
            if REST > 0:
                window = tl.load(at_member + rest[None, :])
                products = tl.dot(rest_high, window.T, tl.dot(rest_low, window.T))
                logits += products * scale[:, None]
        else:
            logits = tl.zeros((BM, BN), tl.float32)
            for start in range(0, length, BD):
                window = tl.load(at_member + start + numbers[None, :])
                some_low = tl.load(low + at + start, mask=wanted[:, None], other=0.0)
                some_high = tl.load(high + at + start, mask=wanted[:, None], other=0.0)
                products = tl.dot(some_high, window.T, tl.dot(some_low, window.T))
                logits += products * scale[:, None]
        # One load for a tile: loads of a column each would be repeated by all threads that need the column.
        tile = tl.load(columns + 4 * member[:, None] + tl.arange(0, 4)[None, :])
        here = (first + tl.arange(0, BN) < end)[:, None] | (tl.arange(0, 4) > 0)[None, :]
        even, odd = tl.split(tl.reshape(tl.where(here, tile, float("-inf")), (BN, 2, 2)))
        bias, value_1 = tl.split(even)
        value_0, value_2 = tl.split(odd)
        logits += bias[None, :]
        new_top = tl.maximum(top, tl.max(logits, 1))
        w = tl.exp2(logits - new_top[:, None])
        kept = tl.exp2(top - new_top)
        top = new_top
        weight = weight * kept + tl.sum(w, 1)
        square = square * (kept * kept) + tl.sum(w * w, 1)
        centre_0 = centre_0 * kept + tl.sum(w * value_0[None, :], 1)
        if CHANNELS == 3:
            centre_1 = centre_1 * kept + tl.sum(w * value_1[None, :], 1)
            centre_2 = centre_2 * kept + tl.sum(w * value_2[None, :], 1)
    out = partial + segment.to(tl.int64) * ((3 + CHANNELS) * n_rows) + rows
    tl.store(out, top, mask=wanted)
    tl.store(out + n_rows, weight, mask=wanted)
    tl.store(out + 2 * n_rows, square, mask=wanted)
    tl.store(out + 3 * n_rows, centre_0, mask=wanted)
    if CHANNELS == 3:
        tl.store(out + 4 * n_rows, centre_1, mask=wanted)
        tl.store(out + 5 * n_rows, centre_2, mask=wanted)


@triton.jit(do_not_specialize=["n_rows", "part"])
def merge_segments(  # type: ignore[no-untyped-def]
    partial,
    bounds,
    tops,
    totals,
    n_rows,
    part,
    SUMS: tl.constexpr,
    BM: tl.constexpr,
    BS: tl.constexpr,
):
    """Merge the partial sums of segments into the totals of their parts, `BS` segments at a time.

    Parameters
    ----------
    partial : pointer to float32, shape (segments, 1 + SUMS, n_rows)
        As `scan_block` writes them.
    bounds : pointer to int64, shape (parts + 1,)
        The segments of each part.
    tops : pointer to float32, shape (parts, n_rows)
        Read and written: the largest logits.
    totals : pointer to float64, shape (parts, SUMS, n_rows)
        Read and written: sums relative to 2^tops.
    part : int
        Part of the first programs along the second axis of the grid.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    wanted = rows < n_rows
    mine = tl.program_id(1)
    first = tl.load(bounds + mine)
    last = tl.load(bounds + mine + 1)
    total = (part + mine).to(tl.int64) * n_rows
    top = tl.load(tops + total + rows, mask=wanted, other=0.0)
    best = top
    step = (1 + SUMS) * n_rows
    for start in range(first, last, BS):
        segment = start + tl.arange(0, BS)
        there = (segment < last)[:, None] & wanted[None, :]
        found = tl.load(partial + segment[:, None] * step + rows[None, :], mask=there, other=float("-inf"))
        best = tl.maximum(best, tl.max(found, 0))
    best = tl.where(wanted, best, 0.0)
    before = tl.exp2(top - best).to(tl.float64)
    tl.store(tops + total + rows, best, mask=wanted)
    for field in tl.static_range(SUMS):
        at = totals + total * SUMS + field * n_rows + rows
        factor = before * before if field == 1 else before
        result = tl.load(at, mask=wanted, other=0.0) * factor
        for start in range(first, last, BS):
            segment = start + tl.arange(0, BS)
            there = (segment < last)[:, None] & wanted[None, :]
            found = partial + segment[:, None] * step + rows[None, :]
            factors = tl.exp2(tl.load(found, mask=there, other=float("-inf")) - best[None, :]).to(tl.float64)
            factors = factors * factors if field == 1 else factors
            new = tl.load(found + (field + 1) * n_rows, mask=there, other=0.0)
            result += tl.sum(new.to(tl.float64) * factors, 0)
        tl.store(at, result, mask=wanted)
