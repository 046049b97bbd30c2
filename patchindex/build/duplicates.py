"""Duplicates: appended images that are equal to another image, pixel by pixel."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from patchindex.runtime import Progress

__all__ = ["count_duplicates"]

DIGEST_BYTES = 16  # two different images have one digest with a chance of 2^-128
REPORTED = 4096  # images per report of progress


def count_duplicates(pixels: np.ndarray, new: np.ndarray, progress: Progress) -> dict[str, int]:
    """Count the new images that are equal to an image of the store, or else to an earlier new image.

    Parameters
    ----------
    pixels : array of uint8, shape (N, H, W, C)
        All images. The memory is about 32 bytes per image.
    new : array of int64
        The numbers of the new images in `pixels`, ascending.
    progress : callable
        Called as `progress(stage, done, total)`.

    Returns
    -------
    dict
        `"store"`: new images that are equal to an image of the store. `"new"`: further new images that are
        equal to a new image before them.
    """
    digests = np.empty((len(pixels), 2), np.uint64)
    for i, image in enumerate(pixels):
        digest = blake2b(image.tobytes(), digest_size=DIGEST_BYTES).digest()
        digests[i] = np.frombuffer(digest, np.uint64)
        if (i + 1) % REPORTED == 0 or i + 1 == len(pixels):
            progress("duplicates", i + 1, len(pixels))
    is_new = np.zeros(len(pixels), bool)
    is_new[new] = True
    # Sort equal images together, and within them the images of the store before new images.
    order = np.lexsort((is_new, *digests.T))
    digests, is_new = digests[order], is_new[order]
    first = np.ones(len(pixels), bool)
    first[1:] = (digests[1:] != digests[:-1]).any(1)
    in_store = ~is_new[np.flatnonzero(first)][np.cumsum(first) - 1]
    return {"store": int((is_new & in_store).sum()), "new": int((is_new & ~in_store & ~first).sum())}
