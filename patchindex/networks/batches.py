"""The images, times and noise of each step of a training run.

All draws are functions of the seed and of the number of the epoch or step. A resumed run therefore draws the
same as a run without a break.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patchindex.build import parse_memory
from patchindex.errors import InputError, Option
from patchindex.images import ImageSource
from patchindex.networks.settings import TrainSettings
from patchindex.random_streams import random_stream
from patchindex.runtime import Progress

__all__ = [
    "LEVELS",
    "Batch",
    "Batches",
    "class_labels",
    "held_out_batches",
    "split_images",
    "weights_seed",
]

LEVELS = 1000  # times in training: 0, 1, ..., LEVELS - 1, divided by LEVELS
READ_IMAGES = 4096  # at once, while all images are read
WEIGHTS_STREAM, ORDER_STREAM, NOISE_STREAM, VALIDATION_STREAM = range(4)


@dataclass(frozen=True)
class Batch:
    """Images and their draws: pixels (n, H, W, C) uint8, levels (n,) in [0, LEVELS), eps (n, C, H, W)."""

    pixels: np.ndarray
    labels: np.ndarray | None
    levels: np.ndarray
    eps: np.ndarray


def weights_seed(seed: int) -> int:
    """Return the seed of the initial weights."""
    return int(_stream(seed, WEIGHTS_STREAM, 0).integers(2**63))


class Batches:
    """The batches of a run: in each epoch all images, in an order of their own.

    The last batch of an epoch is smaller, unless the batch size divides the number of images.
    """

    def __init__(self, images: ImageSource, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._pixels: np.ndarray | None = None
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def per_epoch(self) -> int:
        """Number of steps in an epoch."""
        return math.ceil(len(self.images) / self.batch_size)

    def images_seen(self, step: int) -> int:
        """Return the number of images in the batches before a step."""
        epochs, rest = divmod(step, self.per_epoch)
        return epochs * len(self.images) + rest * self.batch_size

    def keep_in_memory(self, progress: Progress) -> None:
        """Read all images, if they fit into half of the memory that the process may use."""
        if math.prod(self.images.shape) > parse_memory(None):
            return
        pixels = np.empty(self.images.shape, np.uint8)
        for start, block in self.images.chunks(READ_IMAGES):
            pixels[start : start + len(block)] = block
            progress("images", start + len(block), len(pixels))
        self._pixels = pixels

    def at(self, step: int) -> Batch:
        """Return the batch of a step."""
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = _stream(self.seed, ORDER_STREAM, epoch).permutation(len(self.images))
            self._epoch, self._order = epoch, order
        ids = self._order[number * self.batch_size : (number + 1) * self.batch_size]
        pixels = self.images.read(ids) if self._pixels is None else self._pixels[ids]
        labels = None if self.images.labels is None else self.images.labels[ids]
        return _draw(pixels, labels, _stream(self.seed, NOISE_STREAM, step))


def split_images(source: ImageSource, settings: TrainSettings) -> tuple[ImageSource, ImageSource | None]:
    """Return the images to train on, and the last `settings.validation` images, which are held out.

    Raises
    ------
    InputError
        When no image is left for training, or a conditional network has no labels.
    """
    if settings.conditional and source.labels is None:
        raise InputError(
            "the images have no labels", parameter="conditional", remedy=["give ", Option("labels")]
        )
    if not settings.validation:
        return source, None
    kept = len(source) - settings.validation
    if kept < 1:
        raise InputError(
            f"leaves none of {len(source)} images for training",
            parameter="validation",
            remedy="hold out fewer images",
        )
    return source.subset(kept), source.subset(np.arange(kept, len(source)))


def class_labels(source: ImageSource, settings: TrainSettings) -> np.ndarray:
    """Return the class labels of a conditional network, ascending; an empty array for another network."""
    if not settings.conditional or source.labels is None:
        return np.empty(0, np.int64)
    return np.unique(source.labels)


def held_out_batches(images: ImageSource, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield all images in batches, always with the same times and noise."""
    for number, (start, pixels) in enumerate(images.chunks(batch_size)):
        labels = None if images.labels is None else images.labels[start : start + len(pixels)]
        yield _draw(pixels, labels, _stream(seed, VALIDATION_STREAM, number))


def _stream(seed: int, kind: int, number: int) -> np.random.Generator:
    return random_stream(seed, kind, number)


def _draw(pixels: np.ndarray, labels: np.ndarray | None, stream: np.random.Generator) -> Batch:
    count, height, width, channels = pixels.shape
    levels = stream.integers(0, LEVELS, (count,))
    eps = stream.standard_normal((count, channels, height, width), dtype=np.float32)
    return Batch(pixels, labels, levels, eps)
