"""Exact re-ranking, compiled: logits of patches from the stored images, and the sums of a sample of them.

A patch is read where it lies in the uint8 images; no matrix of patches is ever made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.patches import Geometry
from patchindex.simd import LANES, compiled, exp2, inlined, load_lanes, splat_lanes, store
from patchindex.simd_codes import load_bytes, load_id, prefetch, sum_lanes

__all__ = ["Windows", "sample_sums", "window_tables"]

AHEAD = 8  # patches whose pixels are on their way from memory
LOG2_E = np.float32(1.4426950408889634)
FLOOR = np.float32(-120.0)  # weights are not below 2^FLOOR of the largest, which changes nothing
PADDING = np.float32(127.5)  # zero padding, in units of uint8


class Windows(NamedTuple):
    """Where the pixels of training windows are.

    Attributes
    ----------
    reach : int
        k // 2.
    rows, columns : array of int64
        Centres of the windows of an image.
    from_row, from_column : array of int64, shape (size + 2 reach,)
        Image row of position `i - reach`: wrapped around, or -1 where there is none.
    """

    reach: int
    rows: np.ndarray
    columns: np.ndarray
    from_row: np.ndarray
    from_column: np.ndarray


def window_tables(geometry: Geometry) -> Windows:
    """Make the tables of a geometry."""
    y, x = geometry.y, geometry.x
    return Windows(
        geometry.k // 2,
        np.array(y.train_positions, np.int64),
        np.array(x.train_positions, np.int64),
        y.pixels(y.train_padding == "wrapped"),
        x.pixels(x.train_padding == "wrapped"),
    )


@inlined
def _distance(images, windows, patch, query, mask, size, raw):  # type: ignore[no-untyped-def]
    """Return the squared distance of a patch to a query, in units of uint8.

    `images` is flat uint8 in the order (N, H, W, C) and `size` is (H, W, C).
    `query` (k, line) float32 has the window's rows padded to whole vectors, and `mask` (line,) is 1 where
    there is a value.
    """
    height, width, channels = size
    k = 2 * windows.reach + 1
    per_image = len(windows.rows) * len(windows.columns)
    image, place = patch // per_image, patch % per_image
    y, x = windows.rows[place // len(windows.columns)], windows.columns[place % len(windows.columns)]
    line = len(mask)
    begin = image * height * width * channels
    top, left = y - windows.reach, x - windows.reach
    inside = top >= 0 and left >= 0 and top + k <= height and left + k <= width
    end = begin + ((top + k - 1) * width + left) * channels + line
    sums = splat_lanes(np.float32(0))
    if inside and end <= len(images):
        for r in range(k):
            at = begin + ((top + r) * width + left) * channels
            for i in range(0, line, LANES):
                difference = (load_lanes(query, r * line + i) - load_bytes(images, at + i)) * load_lanes(
                    mask, i
                )
                sums = sums + difference * difference
    else:  # a window that sticks out of its image, or whose padded rows stick out of the file
        for r in range(k):
            row = windows.from_row[top + windows.reach + r]
            for j in range(k):
                column = windows.from_column[left + windows.reach + j]
                for c in range(channels):
                    raw[j * channels + c] = (
                        np.float32(images[begin + (row * width + column) * channels + c])
                        if row >= 0 and column >= 0
                        else PADDING
                    )
            for i in range(0, line, LANES):
                difference = (load_lanes(query, r * line + i) - load_lanes(raw, i)) * load_lanes(mask, i)
                sums = sums + difference * difference
    return sum_lanes(sums)


@inlined
def _fetch(images, windows, patch, size):  # type: ignore[no-untyped-def]
    """Ask for the rows of a patch, which will be needed soon."""
    height, width, channels = size
    per_image = len(windows.rows) * len(windows.columns)
    image, place = patch // per_image, patch % per_image
    y, x = windows.rows[place // len(windows.columns)], windows.columns[place % len(windows.columns)]
    for row in range(max(0, y - windows.reach), min(height, y + windows.reach + 1)):
        prefetch(images, ((image * height + row) * width + max(0, x - windows.reach)) * channels)


@compiled
def sample_sums(  # type: ignore[no-untyped-def]
    images, windows, size, queries, mask, scale, file, ids_at, base, visits, kept, state
):
    """Sum the weights of the codes that each query kept, with their exact logits.

    A code was kept with probability `p pi`: p is its block's, and pi follows from its weight and the
    threshold. Its multiplicity m is one over that. `state` (queries, 5 + 3 C) float64 receives max logit,
    sum m w, sum m w^2, sum w (each patch counted once), the sums for the standard error (1 + 2 C) and
    sum m w c (C):

        sum_i (1 - pi) / (p pi^2) w^2 [1, c, c^2] + sum_b (1 - p) / p^2 [B^2, A B, A^2]

    with B and A a block's sums of w / pi and w c / pi: the variance of two-stage sampling, linearised.
    """
    height, width, channels = size
    capacity = kept.code.shape[1]
    logits, patches = np.empty(capacity, np.float32), np.empty(capacity, np.int64)
    centres = np.empty((capacity, channels), np.float32)
    room = np.zeros((3, -(-capacity // LANES) * LANES), np.float32)
    weights, blocks, chances = room
    raw = np.zeros(len(mask), np.float32)
    per_image = len(windows.rows) * len(windows.columns)
    v0, c0 = 4, 5 + 2 * channels
    for q in range(len(queries)):
        top = -np.inf
        n = kept.held[q]
        for i in range(n):
            c = visits.list[q, kept.visit[q, i]]
            patches[i] = load_id(file, ids_at[c] + 8 * (kept.code[q, i] - base[c]))
        for i in range(n):
            patch = patches[i]
            if i + AHEAD < n:
                _fetch(images, windows, patches[i + AHEAD], size)
            logits[i] = -scale * _distance(images, windows, patch, queries[q], mask, size, raw)
            place = patch % per_image
            y, x = windows.rows[place // len(windows.columns)], windows.columns[place % len(windows.columns)]
            at = ((patch // per_image * height + y) * width + x) * channels
            for e in range(channels):
                centres[i, e] = images[at + e] / np.float32(127.5) - np.float32(1)
            top = max(top, np.float64(logits[i]))
        for i in range(n):
            weights[i] = (logits[i] - np.float32(top)) * LOG2_E
            blocks[i] = visits.log_p[q, kept.visit[q, i]]
            chances[i] = min(kept.weight[q, i] - kept.threshold[q], np.float32(0))
        for i in range(0, n, LANES):
            for logs in (weights, blocks, chances):
                store(logs, i, exp2(load_lanes(logs, i), FLOOR))
        mine = state[q]
        mine[:] = 0.0
        mine[0] = top
        weight_b, centre_b = 0.0, np.zeros(channels)
        for i in range(n):
            w, p, pi = np.float64(weights[i]), np.float64(blocks[i]), np.float64(chances[i])
            m = 1 / (p * pi)
            mine[1] += m * w
            mine[2] += m * w * w
            mine[3] += w
            own = (1 - pi) / (p * pi * pi) * w * w
            mine[v0] += own
            weight_b += w / pi
            for e in range(channels):
                c = np.float64(centres[i, e])
                mine[c0 + e] += m * w * c
                mine[v0 + 1 + e] += own * c
                mine[v0 + 1 + channels + e] += own * c * c
                centre_b[e] += w / pi * c
            if i + 1 == n or kept.visit[q, i + 1] != kept.visit[q, i]:
                of_block = (1 - p) / (p * p)
                mine[v0] += of_block * weight_b * weight_b
                for e in range(channels):
                    mine[v0 + 1 + e] += of_block * weight_b * centre_b[e]
                    mine[v0 + 1 + channels + e] += of_block * centre_b[e] * centre_b[e]
                    centre_b[e] = 0.0
                weight_b = 0.0
