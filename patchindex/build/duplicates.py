"""Duplicates: appended images that are equal to another image, pixel by pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from patchindex.images.fingerprints import image_fingerprint
from patchindex.runtime import Progress

__all__ = ["Duplicates", "find_duplicates"]

REPORTED = 4096  # images per report of progress


class Duplicates(NamedTuple):
    """The new images that are equal to another image.

    `counts["store"]`: new images that are equal to an image of the store. `counts["new"]`: further new images
    that are equal to a new image before them. `pairs`, int64 (n, 2): each of all these new images, ascending,
    and the first image that it is equal to.
    """

    counts: dict[str, int]
    pairs: np.ndarray


def find_duplicates(pixels: np.ndarray, new: np.ndarray, progress: Progress) -> Duplicates:
    """Find the new images that are equal to an image of the store, or else to an earlier new image.

    Parameters
    ----------
    pixels : array of uint8, shape (N, H, W, C)
        All images. The memory is about 32 bytes per image.
    new : array of int64
        The numbers of the new images in `pixels`, ascending.
    progress : callable
        Called as `progress(stage, done, total)`.
    """
    fingerprints = np.empty((len(pixels), 2), np.uint64)
    for i, image in enumerate(pixels):
        fingerprints[i] = np.frombuffer(image_fingerprint(image), np.uint64)
        if (i + 1) % REPORTED == 0 or i + 1 == len(pixels):
            progress("duplicates", i + 1, len(pixels))
    is_new = np.zeros(len(pixels), bool)
    is_new[new] = True
    # Sort equal images together, and within them the images of the store before new images.
    order = np.lexsort((is_new, *fingerprints.T))
    fingerprints, is_new = fingerprints[order], is_new[order]
    first = np.ones(len(pixels), bool)
    first[1:] = (fingerprints[1:] != fingerprints[:-1]).any(1)
    original = np.flatnonzero(first)[np.cumsum(first) - 1]
    in_store = ~is_new[original]
    counts = {"store": int((is_new & in_store).sum()), "new": int((is_new & ~in_store & ~first).sum())}
    repeated = is_new & ~first
    pairs = np.stack([order[repeated], order[original[repeated]]], 1)
    return Duplicates(counts, pairs[np.argsort(pairs[:, 0])])
