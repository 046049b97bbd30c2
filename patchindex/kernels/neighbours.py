"""Exact logits of retrieved patches, for the pixels that retrieved them and for the pixels around.

    logit = -scale ||W(x / a, p) - P||^2,    scale = a^2 / (2 beta), both windows in units of uint8

A patch that is heavy for a pixel is often heavy, moved by one, for the pixel beside. One set of squared
differences of two windows that are `k + 2 r` wide serves all `(2 r + 1)^2` of these pairs: k rows are summed,
then a mask picks k columns.

Why it is fast. Pairs are sorted by image and offset, so a pair that was written before is found with one
stamp per pixel, and the pixels of the next images are prefetched. Windows inside an image are read from the
uint8 images without a copy.

======= =================== ===========================================================================
array   dtype, shape        content
======= =================== ===========================================================================
images  uint8, flat         training images, (N, H, W, C)
lines   float32, 2-D        the noisy image over a, in units of uint8, padded by k // 2 + REACH
keys    int64, (n,)         a pair of a patch and a pixel: `image << 2 bits | offset << bits | pixel`, where
                            offset is the raster number of (patch centre - pixel) modulo (H, W)
members known_patches       pixel, image, place (`y W + x` of the centre) and logit of each pair
======= =================== ===========================================================================
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from patchindex.kernels.compile import compiled, inlined, lean
from patchindex.kernels.simd import (
    LANES,
    exp2,
    load_bytes,
    load_lanes,
    prefetch,
    splat_lanes,
    store,
    sum_lanes,
)
from patchindex.kernels.windows import REACH, WindowTables

__all__ = [
    "DEPTH",
    "count_below",
    "keys_above",
    "largest_logits",
    "merge_by_image",
    "neighbour_logits",
    "pair_keys",
    "query_lines",
    "sums_of",
]

AHEAD = 6  # pairs whose pixels are prefetched
DEPTH = np.float32(20)  # nats below the largest logit of a pixel; smaller ones are left to the random sample
FLOOR = np.float32(-100.0)
MOST_IMAGES = np.iinfo(np.int32).max
LOG2_E = np.float32(1.4426950408889634)
PADDING = np.float32(127.5)  # zero padding, on the uint8 scale


def query_lines(x: Tensor, tables: WindowTables, a: float) -> np.ndarray:
    """Return the lines of a noisy image (C, H, W), padded to whole vectors beyond the last window."""
    values = ((x / a + 1) * 127.5).permute(1, 2, 0).numpy()
    out = values[tables.query_y][:, tables.query_x].copy()  # in C order
    out[tables.query_y < 0] = PADDING
    out[:, tables.query_x < 0] = PADDING
    lines = out.reshape(len(out), -1)
    return np.pad(lines, ((0, 0), (0, 2 * LANES))).astype(np.float32)


@lean
def pair_keys(ids, pixels, tables, images, keys, found):  # type: ignore[no-untyped-def]
    """Write the keys of pixels and their patches, for the images `images[0]` to `images[1] - 1`.

    `ids` (rows, most) has the patch ids of each of `pixels` (rows,), -1 for none. `found[0]` is set to the
    number of keys.
    """
    height, width, bits, border = tables.height, tables.width, tables.bits, tables.border
    per_row = width - 2 * border
    per_image = (height - 2 * border) * per_row
    first, end = images[0] * per_image, images[1] * per_image
    n = 0
    for at in range(len(ids)):
        pixel = pixels[at]
        y, x = pixel // width, pixel % width
        for i in range(ids.shape[1]):
            patch = ids[at, i]
            if patch < first or patch >= end:
                continue
            image, place = patch // per_image, patch % per_image
            row, column = border + place // per_row - y, border + place % per_row - x
            offset = (row + height * int(row < 0)) * width + column + width * int(column < 0)
            keys[n] = ((image << bits) + offset << bits) + pixel
            n += 1
    found[0] = n


@inlined
def _patch_of(key, tables):  # type: ignore[no-untyped-def]
    """Return the image of a key, and the row and column of the patch's centre in the image."""
    mask = (1 << tables.bits) - 1
    pixel, offset = key & mask, key >> tables.bits & mask
    y, x = tables.y_of[pixel] + tables.y_of[offset], tables.x_of[pixel] + tables.x_of[offset]
    y -= tables.height * int(y >= tables.height)
    x -= tables.width * int(x >= tables.width)
    return key >> 2 * tables.bits, y, x


@compiled
def neighbour_logits(images, keys, lines, scale, tables, reach, known, members, found):  # type: ignore[no-untyped-def]
    """Write the logits of pairs, and of the same patches moved by up to `reach` for the pixels around.

    `keys` and `known` ascend. No pair is written twice, and no pair of `known` is written. `members` has room
    for `(2 reach + 1)^2` entries per key; `found[0]` is set to the number written.
    """
    height, width, channels, k, bits = tables.height, tables.width, tables.channels, tables.k, tables.bits
    area, pad = height * width, k // 2 + reach
    side = k + 2 * reach
    line = -(-side * channels // LANES) * LANES
    shifts = 2 * reach + 1
    border = REACH - reach  # of the lines, which are for the largest reach
    edge = k // 2 + REACH  # of the tables
    masks = np.zeros(shifts * line, np.float32)
    for j in range(shifts):
        masks[j * line + j * channels : j * line + (j + k) * channels] = 1
    squares = np.zeros(side * line, np.float32)
    window = np.zeros(line, np.float32)
    raw = np.zeros(line, np.float32)
    stamp = np.full(area, np.int64(-1))
    query_line = lines.shape[1]
    flat = lines.reshape(-1)
    n = 0
    seen = np.searchsorted(known, keys[0] >> bits << bits) if len(keys) else 0
    for at in range(len(keys)):
        plane, pixel = keys[at] >> bits, keys[at] & (1 << bits) - 1
        while seen < len(known) and known[seen] >> bits <= plane:
            stamp[known[seen] & (1 << bits) - 1] = known[seen] >> bits
            seen += 1
        y, x = tables.y_of[pixel], tables.x_of[pixel]
        image, ty, tx = _patch_of(keys[at], tables)
        if at + AHEAD < len(keys):
            later, ly, lx = _patch_of(keys[at + AHEAD], tables)
            for row in range(max(0, ly - pad), min(height, ly + pad + 1)):
                prefetch(images, ((later * height + row) * width + max(0, lx - pad)) * channels)
        top, left = ty - pad, tx - pad
        last = ((image * height + top + side - 1) * width + left) * channels + line
        inside = top >= 0 and left >= 0 and top + side <= height and left + side <= width
        if reach == 0 and inside and last <= len(images):  # the common case needs no squares in memory
            if stamp[pixel] == plane:
                continue
            stamp[pixel] = plane
            sums = splat_lanes(np.float32(0))
            for r in range(k):
                q = (y + border + r) * query_line + (x + border) * channels
                begin = ((image * height + top + r) * width + left) * channels
                for i in range(0, line, LANES):
                    difference = load_lanes(flat, q + i) - load_bytes(images, begin + i)
                    sums = sums + difference * difference * load_lanes(masks, i)
            members.pixel[n] = pixel
            members.image[n] = image
            members.place[n] = ty * width + tx
            members.logit[n] = -scale * sum_lanes(sums)
            n += 1
            continue
        for r in range(side):
            q = (y + border + r) * query_line + (x + border) * channels
            if inside and last <= len(images):
                begin = ((image * height + top + r) * width + left) * channels
                for i in range(0, line, LANES):
                    difference = load_lanes(flat, q + i) - load_bytes(images, begin + i)
                    store(squares, r * line + i, difference * difference)
            else:
                row = tables.train_y[edge + top + r]
                for j in range(side):
                    column = tables.train_x[edge + left + j]
                    begin = ((image * height + row) * width + column) * channels
                    for c in range(channels):
                        raw[j * channels + c] = (
                            np.float32(images[begin + c]) if row >= 0 and column >= 0 else PADDING
                        )
                for i in range(0, line, LANES):
                    difference = load_lanes(flat, q + i) - load_lanes(raw, i)
                    store(squares, r * line + i, difference * difference)
        for dy in range(shifts):
            for i in range(0, line, LANES):
                sums = splat_lanes(np.float32(0))
                for r in range(dy, dy + k):
                    sums = sums + load_lanes(squares, r * line + i)
                store(window, i, sums)
            py, my = tables.query_y[edge + y + dy - reach], ty + dy - reach
            if py < 0 or my < tables.range_y[py, 0] or my >= tables.range_y[py, 1]:
                continue
            for dx in range(shifts):
                px, mx = tables.query_x[edge + x + dx - reach], tx + dx - reach
                if px < 0 or mx < tables.range_x[px, 0] or mx >= tables.range_x[px, 1]:
                    continue
                p = py * width + px
                if stamp[p] == plane:
                    continue
                stamp[p] = plane
                sums = splat_lanes(np.float32(0))
                for i in range(0, line, LANES):
                    sums = sums + load_lanes(window, i) * load_lanes(masks, dx * line + i)
                members.pixel[n] = p
                members.image[n] = image
                members.place[n] = my * width + mx
                members.logit[n] = -scale * sum_lanes(sums)
                n += 1
    found[0] = n


@compiled
def largest_logits(pixels, logits, top):  # type: ignore[no-untyped-def]
    """Raise `top`, float32 (pixels,), to the largest logit of each pixel."""
    for i in range(len(pixels)):
        top[pixels[i]] = max(top[pixels[i]], logits[i])


@lean
def merge_by_image(one, two, out):  # type: ignore[no-untyped-def]
    """Merge members in order of their images; of the same image, the members of `one` come first."""
    i = j = n = 0
    while n < len(out.pixel):
        bound = two.image[j] if j < len(two.image) else MOST_IMAGES
        while i < len(one.image) and one.image[i] <= bound:
            out.pixel[n], out.image[n] = one.pixel[i], one.image[i]
            out.place[n], out.logit[n] = one.place[i], one.logit[i]
            i, n = i + 1, n + 1
        bound = one.image[i] if i < len(one.image) else MOST_IMAGES
        while j < len(two.image) and two.image[j] < bound:
            out.pixel[n], out.image[n] = two.pixel[j], two.image[j]
            out.place[n], out.logit[n] = two.place[j], two.logit[j]
            j, n = j + 1, n + 1


@lean
def count_below(pixels, logits, top, counts):  # type: ignore[no-untyped-def]
    """Count members in `counts`, int32 (pixels, bins), by their depth below their pixel's largest logit.

    The bins divide `DEPTH` evenly; deeper members are not counted.
    """
    bins = counts.shape[1]
    for i in range(len(pixels)):
        at = np.int64((top[pixels[i]] - logits[i]) * (bins / DEPTH))
        if at < bins:
            counts[pixels[i], at] += 1


@compiled
def sums_of(images, area, channels, pixels, patch_images, places, logits, top, sums, every, found):  # type: ignore[no-untyped-def]
    """Drop members more than `DEPTH` below their pixel's largest logit, and sum the weights of the others.

    Adds w, w^2 and w times each channel of the uint8 centre to `sums`, float64 (pixels, 2 + C), and the
    number of all members to `every`, int64 (pixels,). The members that stay are moved to the front, and
    `found[0]` is set to their number.
    """
    n = 0
    for i in range(len(pixels)):
        every[pixels[i]] += 1
        pixels[n], patch_images[n], places[n] = pixels[i], patch_images[i], places[i]
        logits[n] = logits[i]
        n += int(logits[i] >= top[pixels[i]] - DEPTH)
    found[0] = n
    below = np.zeros(LANES, np.float32)
    for first in range(0, n, LANES):
        some = min(LANES, n - first)
        for i in range(some):
            below[i] = (logits[first + i] - top[pixels[first + i]]) * LOG2_E
        store(below, 0, exp2(load_lanes(below, 0), FLOOR))
        for i in range(some):
            w, p = np.float64(below[i]), pixels[first + i]
            at = (np.int64(patch_images[first + i]) * area + places[first + i]) * channels
            sums[p, 0] += w
            sums[p, 1] += w * w
            for c in range(channels):
                sums[p, 2 + c] += w * images[at + c]


@lean
def keys_above(tables, pixels, patch_images, places, logits, bar, wanted, keys, found):  # type: ignore[no-untyped-def]
    """Write the keys of members of wanted images (a mask) whose logit is at least their pixel's bar."""
    height, width, bits = tables.height, tables.width, tables.bits
    n = 0
    for i in range(len(pixels)):
        if logits[i] >= bar[pixels[i]] and wanted[patch_images[i]]:
            p, image, at = np.int64(pixels[i]), np.int64(patch_images[i]), np.int64(places[i])
            y, x = tables.y_of[at] - tables.y_of[p], tables.x_of[at] - tables.x_of[p]
            offset = (y + height * int(y < 0)) * width + x + width * int(x < 0)
            keys[n] = ((image << bits) + offset << bits) + p
            n += 1
    found[0] = n
