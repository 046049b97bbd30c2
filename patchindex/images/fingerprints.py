"""Fingerprints of images: equal images have equal fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np

from patchindex.images.source import ImageSource

__all__ = ["all_fingerprints", "image_fingerprint", "image_fingerprints"]

FINGERPRINT_BYTES = 16  # two different images have one fingerprint with a chance of 2^-128
BLOCK = 4096  # images in memory at once


def image_fingerprint(image: np.ndarray) -> bytes:
    """Return the fingerprint of an image, `FINGERPRINT_BYTES` bytes of BLAKE2b."""
    return blake2b(image.tobytes(), digest_size=FINGERPRINT_BYTES).digest()


def image_fingerprints(source: ImageSource) -> Iterator[bytes]:
    """Yield the fingerprint of each image of a source.

    Examples
    --------
    >>> from patchindex.images import open_images
    >>> images = np.zeros((3, 8, 8), np.uint8)
    >>> images[1] = 255
    >>> first, second, third = image_fingerprints(open_images(images))
    >>> first == third, first == second
    (True, False)
    """
    for _, block in source.chunks(BLOCK):
        yield from map(image_fingerprint, block)


def all_fingerprints(source: ImageSource) -> np.ndarray:
    """Return the fingerprints of all images of a source, (N,) of bytes."""
    return np.fromiter(image_fingerprints(source), f"S{FINGERPRINT_BYTES}", len(source))
