"""Logits of whole images under masks: each entry of an image has its own list of entries to compare.

    logit[m, n] = -scale sum_{j in mask m} (y_j - v_nj)^2

in units of log 2, for entry m of a noisy image y and training image n. A tile holds `BLOCK` training images,
entry by entry. The squared differences of a tile are computed once for each noisy image. The logits of an
entry are sums of squared differences, and are added to softmax sums at once.

The masks of neighbouring pixels are alike. `Masks` says for each entry which earlier entry's sum to start
from, and which squared differences to add and to subtract; rounding errors of these steps are kept and added
back. An entry may start from zero, and then no term is subtracted.

============== =============================== ========================================================
array, float32 shape, stored flat              content
============== =============================== ========================================================
tile.values    (D, BLOCK)                      pixels of `BLOCK` images in [-1, 1]
differences    (D, BLOCK)                      scaled squared differences, without a term of the query alone
recent         (ring, 2, BLOCK)                sums of the last entries, and what rounding took from them
sums.sums      (D, 3, LANES)                   sums of w, of w^2 and of w times the entry
============== =============================== ========================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.kernels.compile import compiled, inlined
from patchindex.kernels.scan import NO_LOGIT, add_block
from patchindex.kernels.simd import BLOCK, load_block, splat_block, store

__all__ = ["Masks", "prepare", "scan_masked", "square"]

CHUNK = 32  # terms that are summed before they are added to a longer sum: rounding errors stay small


class Masks(NamedTuple):
    """The masks of D entries, each as a change of the mask of an earlier entry.

    The mask of entry m is the mask of entry `m - back[m]`, or the empty mask if `back[m]` is 0, with the
    entries `indices[starts[m, 0]:starts[m, 1]]` and without `indices[starts[m, 1]:starts[m + 1, 0]]`.
    """

    back: np.ndarray  # int64 (D,)
    starts: np.ndarray  # int64 (D + 1, 2)
    indices: np.ndarray  # int32
    ring: int  # above all of `back`


@compiled
def prepare(images, values):  # type: ignore[no-untyped-def]
    """Write uint8 images (n, D), n at most BLOCK, into the values of a tile; other lanes get zeros."""
    n, size = images.shape
    for j in range(size):
        at = j * BLOCK
        for lane in range(n):
            values[at + lane] = np.float32(images[lane, j]) / np.float32(127.5) - np.float32(1)
        values[at + n : at + BLOCK] = np.float32(0)


@compiled
def square(values, near, beyond, scale, differences):  # type: ignore[no-untyped-def]
    """Write the scaled squared differences of a tile and a noisy image.

    `near` is the noisy image clipped to [-1, 1], and `beyond` is twice what the clip removed: near - v times
    near - v + beyond is the squared difference without the square of the removed part, and has its sign.
    """
    for j in range(len(near)):
        u = splat_block(near[j]) - load_block(values, j * BLOCK)
        store(differences, j * BLOCK, u * (u + splat_block(beyond[j])) * splat_block(scale))


@inlined
def _sum(differences, indices, at, stop):  # type: ignore[no-untyped-def]
    """Return the sum of the squared differences that `indices[at:stop]` lists."""
    one = two = splat_block(np.float32(0))
    while at < stop:
        end = min(at + CHUNK, stop)
        part = other = splat_block(np.float32(0))
        for i in range(at, end - 1, 2):
            part = part + load_block(differences, indices[i] * BLOCK)
            other = other + load_block(differences, indices[i + 1] * BLOCK)
        if (end - at) % 2:
            part = part + load_block(differences, indices[end - 1] * BLOCK)
        one, two = one + part, two + other
        at = end
    return one + two


@compiled
def scan_masked(tile, differences, masks, n, recent, sums):  # type: ignore[no-untyped-def]
    """Add the first n images of a tile to the softmax sums of all entries."""
    nothing = splat_block(np.float32(0))
    empty = np.zeros(BLOCK, np.float32)
    empty[n:] = NO_LOGIT
    absent = load_block(empty, 0)
    slot = 0
    for m in range(len(masks.back)):
        s = lost = nothing
        back = masks.back[m]
        if back > 0:
            start = slot - back
            if start < 0:
                start += masks.ring
            s, lost = load_block(recent, start * 2 * BLOCK), load_block(recent, (start * 2 + 1) * BLOCK)
        change = _sum(differences, masks.indices, masks.starts[m, 0], masks.starts[m, 1])
        if masks.starts[m, 1] < masks.starts[m + 1, 0]:
            change = change - _sum(differences, masks.indices, masks.starts[m, 1], masks.starts[m + 1, 0])
        new = s + change
        part = new - s
        lost = lost + ((s - (new - part)) + (change - part))
        store(recent, slot * 2 * BLOCK, new)
        store(recent, (slot * 2 + 1) * BLOCK, lost)
        slot += 1
        if slot == masks.ring:
            slot = 0
        add_block(nothing - new - lost - absent, m, sums, tile, m * BLOCK)
