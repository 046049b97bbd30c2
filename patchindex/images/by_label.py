"""Training images sorted by label: the images of a label are a range [lo, hi)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar

import numpy as np

from patchindex.checks import is_whole
from patchindex.errors import InputError, Option
from patchindex.images.file_names import FileNames, numbered
from patchindex.images.labels import LabelsLike
from patchindex.images.registry import ImagesLike, open_images
from patchindex.images.source import ImageSource
from patchindex.images.tensors import as_tensor, to_unit

__all__ = ["TrainingImages", "as_tensor", "read_ahead", "to_unit"]

T = TypeVar("T")

BLOCK_BYTES = 2 << 20  # quick to read, and large enough to hide the cost of a call


class TrainingImages:
    """The training images of a score, stably sorted by label; in source order if there are no labels.

    `source` and `labels` are as for `open_images`. `source_ids`, int64 (N,), are the user's numbers of the
    images: by default, positions in the source. Give `source_ids` if the source is sorted by label
    already, as a store is. The attribute `labels`, int64 (N,) or None, is ascending. `parent` is None, or
    the images that `select` took these images from and their numbers there.
    """

    def __init__(
        self, source: ImagesLike, labels: LabelsLike | None = None, source_ids: np.ndarray | None = None
    ) -> None:
        self.source: ImageSource = open_images(source, labels=labels)
        n = len(self.source)
        self.labels: np.ndarray | None = None
        self.parent: tuple[TrainingImages, slice | np.ndarray] | None = None
        self._order: np.ndarray | None = None
        if source_ids is not None:
            self.source_ids, self.labels = source_ids, self.source.labels
        elif self.source.labels is None:
            self.source_ids = np.arange(n)
        else:
            order = np.argsort(self.source.labels, kind="stable")
            self.labels = self.source.labels[order]
            self.source_ids = self._order = order

    def __len__(self) -> int:
        return len(self.source)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.source.shape[1], self.source.shape[2]

    @property
    def channels(self) -> int:
        """Number of channels, 1 or 3."""
        return self.source.shape[3]

    @property
    def source_bytes(self) -> int:
        """Bytes of all images as uint8."""
        return int(np.prod(self.source.shape, dtype=np.int64))

    def range_of(self, label: int | None) -> tuple[int, int]:
        """Return the range [lo, hi) of images with a label (all for None), or raise `InputError`."""
        if label is None:
            return 0, len(self)
        if not is_whole(label):
            raise InputError(f"{label!r} is not an integer", parameter="label", remedy="give one, such as 3")
        if self.labels is None:
            raise InputError(
                "the images have no labels",
                parameter="label",
                remedy=["leave it out, or give ", Option("labels")],
            )
        lo, hi = (int(np.searchsorted(self.labels, label, side)) for side in ("left", "right"))
        if lo == hi:
            known = np.unique(self.labels)
            listed = ", ".join(map(str, known[:20])) + (", ..." if len(known) > 20 else "")
            raise InputError(f"no image has label {label}", parameter="label", remedy=f"use one of {listed}")
        return lo, hi

    def read(self, lo: int, hi: int) -> np.ndarray:
        """Return images [lo, hi) in label order: uint8, shape (hi - lo, H, W, C)."""
        return self.source.read(slice(lo, hi) if self._order is None else self._order[lo:hi])

    def numbers_of(self, source_ids: np.ndarray) -> np.ndarray:
        """Return the positions in label order of images that the source numbers `source_ids`: int64."""
        ids, order = self.source_ids, self._by_source_id
        places = np.minimum(np.searchsorted(ids, source_ids, sorter=order), len(self) - 1)
        return order[places]

    @cached_property
    def _by_source_id(self) -> np.ndarray:
        return np.argsort(self.source_ids, kind="stable")

    def file_names(self) -> FileNames | None:
        """Return the file names of all images in label order; None when images are no files."""
        names = self.source.file_names
        return names if names is None or self._order is None else names.subset(self._order)

    @property
    def has_names(self) -> bool:
        """True when images have file names."""
        return self.source.file_names is not None

    def image_names(self, image_ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the file names of images that the source numbers `image_ids`.

        The name of an image that is no file of its own is empty. Names are as the source has them: use
        `patchindex.errors.printable` to print them.

        Raises
        ------
        InputError
            When there is no image of one of these numbers.
        """
        ids = np.asarray(image_ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            what, remedy = "is no sequence of integers", "give image numbers, such as [0, 7]"
            raise InputError(what, parameter="image_ids", remedy=remedy)
        numbers = self.numbers_of(ids)
        missing = self.source_ids[numbers] != ids
        if missing.any():
            raise InputError(
                f"there is no image {ids[np.argmax(missing)]}",
                parameter="image_ids",
                remedy=f"use the numbers of the source, from 0 to {self.source_ids.max()}",
            )
        names = self.source.file_names
        if names is None:
            return [""] * len(ids)
        return names[numbers if self._order is None else self._order[numbers]]

    def numbered(self, image_id: int) -> str:
        """Return the number of an image with its file name, as it is printed: `12 (cat/1.png)`."""
        return numbered(image_id, self.image_names([image_id])[0])

    def select(self, numbers: slice | np.ndarray) -> TrainingImages:
        """Return some images, in the order of `numbers`: positions in label order, or a slice of step 1.

        The selection has no labels: all its images are compared. It shares the copies of its parent on
        devices (`patchindex.images.on_device`).
        """
        source = self.source
        if self._order is not None:
            source = source.subset(self._order[numbers])
        elif not (isinstance(numbers, slice) and numbers.indices(len(self)) == (0, len(self), 1)):
            source = source.subset(numbers)
        selected = TrainingImages(source, source_ids=self.source_ids[numbers])
        selected.labels, selected.parent = None, (self, numbers)
        return selected

    def read_some(self, numbers: np.ndarray) -> np.ndarray:
        """Return the images at some positions in label order: uint8, shape (n, H, W, C)."""
        return self.source.read(numbers if self._order is None else self._order[numbers])

    def in_source_order(self) -> ImageSource:
        """Return the images and their labels in the order of the source, also from a sorted store."""
        if self._order is not None or self.labels is None:
            return self.source
        return self.source.subset(self._by_source_id)

    def blocks(
        self, lo: int, hi: int, most: int, multiple: int = 1, block_bytes: int | None = None
    ) -> Iterator[np.ndarray]:
        """Yield images [lo, hi) in blocks of about `block_bytes`: uint8 (n, H, W, C), n at most `most`.

        `block_bytes` is 2 MiB (`BLOCK_BYTES`) by default.

        The range of all images comes in the order of the source, which is fastest to read; a smaller range
        comes in label order. Blocks end at multiples of `multiple`. If a source with chunks is read in its
        own order, blocks end at ends of chunks instead, so that no chunk is unpacked twice. The last block
        may end elsewhere, and so may all blocks if `most` is too small.
        """
        direct = self._reads_directly(lo, hi)
        unit = self.source.chunk if direct and self.source.chunk > 1 else multiple
        height, width = self.size
        size = max(unit, (block_bytes or BLOCK_BYTES) // (height * width * self.channels))
        size = min(most, size // unit * unit)
        start = lo
        while start < hi:
            stop = start + size
            stop = min(stop - stop % unit if size >= unit else stop, hi)
            yield self.source.read(slice(start, stop)) if direct else self.read(start, stop)
            start = stop

    def ids_of_blocks(self, lo: int, hi: int) -> np.ndarray:
        """Return the `source_ids` of images [lo, hi) in the order of `blocks`: int64 (hi - lo,)."""
        in_source_order = self._order is not None and self._reads_directly(lo, hi)
        return np.arange(lo, hi) if in_source_order else self.source_ids[lo:hi]

    def _reads_directly(self, lo: int, hi: int) -> bool:
        """Return whether `blocks` reads the range in the order of the source."""
        return self._order is None or (lo, hi) == (0, len(self))


@contextmanager
def read_ahead(blocks: Iterator[T]) -> Iterator[Iterator[T]]:
    """Iterate over blocks while another thread reads the next block."""
    with ThreadPoolExecutor(1, "patchindex-read") as reader:

        def ahead() -> Iterator[T]:
            pending = reader.submit(next, blocks, None)
            while (block := pending.result()) is not None:
                pending = reader.submit(next, blocks, None)
                yield block

        yield ahead()
