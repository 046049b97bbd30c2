"""The contract of an image source: uint8 images by id, read on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchindex.checks import check_least, is_whole
from patchindex.errors import InputError
from patchindex.images.file_names import FileNames
from patchindex.images.labels import as_labels
from patchindex.images.preparation import Preparation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImageSource", "Index", "SubsetSource"]

Index = slice | np.ndarray | Sequence[int]

FLOAT_BYTES = 8  # a float32, once more while the axes are moved
LARGEST_AXIS = 1 << 40  # images, or pixels; a larger number is a damaged header


class ImageSource(ABC):
    """N uint8 images of one size, with or without labels.

    A subclass defines `_read`.

    Parameters
    ----------
    name : str
        The source as the user typed it, or "array": for messages and provenance.
    shape : tuple of int
        (N, H, W, C), C 1 or 3, no dimension empty.
    labels : array-like of int, shape (N,), optional
    label_names : sequence of str, optional
        Names of the labels 0, 1, ...

    Attributes
    ----------
    labels : numpy.ndarray or None
        int64, shape (N,).
    chunk : int
        Number of images that are stored and unpacked together, from each multiple of this number on; 1 if
        each image can be read by itself, or if chunks begin elsewhere (see `packed`).
    packed : bool
        True if several images are unpacked to read one image.
    skipped : tuple of str
        Files that were left out because they cannot be read.
    kept : numpy.ndarray or None
        int64, shape (N,): positions of the images among all images found, skipped ones included. None if no
        image was skipped, and for a source that was made from another source.
    file_names : FileNames or None
        The names of the image files, relative to the source; None for images that are no files.
    prepared : Preparation
        The options of `open_images` that made the images, for images that are appended to a store later.

    Raises
    ------
    InputError
        An empty shape, channels other than 1 or 3, labels that do not fit.

    Examples
    --------
    >>> from patchindex.images import open_images
    >>> source = open_images(np.zeros((5, 8, 8), np.uint8), labels=[0, 1, 0, 1, 0])
    >>> source.shape, source.labels.tolist()
    ((5, 8, 8, 1), [0, 1, 0, 1, 0])
    >>> source.read(slice(1, 3)).shape
    (2, 8, 8, 1)
    >>> source.subset(source.labels == 1).shape
    (2, 8, 8, 1)
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int, int],
        *,
        labels: Any = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        count, height, width, channels = shape
        if count < 1:
            raise InputError("holds no images", where=name, remedy="give at least one image")
        if height < 1 or width < 1:
            raise InputError(
                f"images of {height}×{width} pixels are empty",
                where=name,
                remedy="give images of at least one pixel",
            )
        if max(shape) > LARGEST_AXIS:
            raise InputError(
                f"announces an array of shape {shape}",
                where=name,
                remedy="copy it again, or repair its header",
            )
        if channels not in (1, 3):
            raise InputError(
                f"images have {channels} channels, expected 1 or 3",
                where=name,
                remedy="give shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)",
            )
        self.name = name
        self.shape = shape
        self.chunk = 1
        self.skipped: tuple[str, ...] = ()
        self.kept: np.ndarray | None = None
        self.file_names: FileNames | None = None
        self.prepared = Preparation()
        self.labels = None if labels is None else as_labels(labels, count, where=name)
        self.label_names = None if label_names is None else tuple(label_names)

    @property
    def packed(self) -> bool:
        """True if several images are unpacked to read one image."""
        return self.chunk > 1

    @property
    def found(self) -> int:
        """Number of all images found, skipped ones included."""
        return len(self) + (0 if self.kept is None else len(self.skipped))

    @abstractmethod
    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        """Return images, as `read` does, of a slice(start, stop) or int64 ids inside [0, N), not empty."""

    def read(self, index: Index) -> np.ndarray:
        """Return images as a new C-contiguous uint8 array of shape (n, H, W, C).

        Parameters
        ----------
        index : slice, array of int, or array of bool
            A slice of step 1; or ids in any order, each in [0, N), repeats allowed; or a mask of shape (N,).

        Raises
        ------
        InputError
            An id outside [0, N), a slice with another step, or images that turn out to be damaged.
        """
        resolved = self._resolve(index)
        empty = resolved.start == resolved.stop if isinstance(resolved, slice) else len(resolved) == 0
        return np.empty((0, *self.shape[1:]), np.uint8) if empty else self._read(resolved)

    def floats(self, index: int | Index = slice(None)) -> Tensor:
        """Return images as floats in [-1, 1], as all functions of this package take them: `p / 127.5 - 1`.

        Parameters
        ----------
        index : int, slice of step 1, array of int, or array of bool
            One image, or an index as `read` takes it; by default all images.

        Returns
        -------
        Tensor
            float32, shape (n, C, H, W), on the CPU; one image has the shape (1, C, H, W).

        Raises
        ------
        InputError
            As from `read`; also when the floats take more memory than the process may use.

        Examples
        --------
        >>> from patchindex.images import open_images
        >>> source = open_images(np.full((5, 8, 9, 3), 255, np.uint8))
        >>> source.floats([4, 0]).shape, source.floats(2).shape, float(source.floats(2).max())
        (torch.Size([2, 3, 8, 9]), torch.Size([1, 3, 8, 9]), 1.0)
        """
        from patchindex.images.tensors import as_tensor, to_unit  # torch takes seconds to import
        from patchindex.runtime import memory_limit

        ids = [index] if is_whole(index) else index
        pixels = self.read(ids)
        need, limit = FLOAT_BYTES * pixels.size, memory_limit()
        if need > limit:
            raise InputError(
                f"{len(pixels)} images as floats take {need / 2**30:,.0f} GiB, "
                f"and this process may use {limit / 2**30:,.1f}",
                where=self.name,
                remedy="take fewer at once",
            )
        return to_unit(as_tensor(pixels)).permute(0, 3, 1, 2).contiguous()

    def _resolve(self, index: Index) -> slice | np.ndarray:
        """Return the index as slice(start, stop) or int64 ids inside [0, N)."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise InputError(
                    f"a slice of step {step} cannot be read",
                    where=self.name,
                    remedy="give the ids as an array",
                )
            return slice(start, max(start, stop))
        ids = np.asarray(index)
        if ids.dtype == bool and ids.shape == (len(self),):
            return np.flatnonzero(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InputError(
                f"image ids have dtype {ids.dtype} and shape {ids.shape}",
                where=self.name,
                remedy=f"give a one-dimensional array of integers, or a mask of shape ({len(self)},)",
            )
        outside = (ids < 0) | (ids >= len(self))
        if outside.any():
            raise InputError(
                f"there is no image {ids[np.argmax(outside)]}",
                where=self.name,
                remedy=f"use ids from 0 to {len(self) - 1}",
            )
        return ids.astype(np.int64)

    def chunks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield all images in order, `size` at a time: the id of the first image, and uint8 (n, H, W, C)."""
        check_least(size=(size, 1))
        for start in range(0, len(self), size):
            yield start, self.read(slice(start, start + size))

    def subset(self, which: int | Index) -> ImageSource:
        """Return a source of some of the images, with their labels, read on demand; itself for all of them.

        Parameters
        ----------
        which : int, slice of step 1, array of int, or array of bool
            The first `which` images (all if there are fewer), or an index as `read` takes it.

        Raises
        ------
        InputError
            No image left, or ids outside [0, N).
        """
        if is_whole(which):
            if which < 1:
                raise InputError(
                    f"a limit of {which} leaves no image", where=self.name, remedy="give 1 or more"
                )
            which = slice(0, int(which))
        index = self._resolve(which)
        everything = isinstance(index, slice) and index == slice(0, len(self))
        return self if everything else SubsetSource(self, index)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | Index) -> np.ndarray:
        """Return one image (H, W, C) for an int, images (n, H, W, C) for a slice, ids or a mask."""
        if is_whole(index):
            if not -len(self) <= index < len(self):
                # An IndexError ends a for loop over the source.
                raise IndexError(f"{self.name}: there is no image {index}; use ids from 0 to {len(self) - 1}")
            return self.read(np.array([index % len(self)]))[0]
        if isinstance(index, slice) and index.step not in (None, 1):
            index = np.arange(*index.indices(len(self)))
        return self.read(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an image source is always read into a new array")
        images = self.read(slice(None))
        return images if dtype is None else images.astype(dtype)

    def __repr__(self) -> str:
        count, height, width, channels = self.shape
        labels = "no labels" if self.labels is None else "labels"
        return f"<{type(self).__name__} {self.name}: {count} images {height}×{width}×{channels}, {labels}>"


class SubsetSource(ImageSource):
    """Some images of another source, as `ImageSource.subset` returns them."""

    def __init__(self, parent: ImageSource, index: slice | np.ndarray) -> None:
        count = index.stop - index.start if isinstance(index, slice) else len(index)
        super().__init__(
            parent.name,
            (count, *parent.shape[1:]),
            labels=None if parent.labels is None else parent.labels[index],
            label_names=parent.label_names,
        )
        self.skipped, self.prepared = parent.skipped, parent.prepared
        self.file_names = None if parent.file_names is None else parent.file_names.subset(index)
        self._parent, self._index = parent, index
        if isinstance(index, slice) and index.start % parent.chunk == 0:
            self.chunk = parent.chunk

    @property
    def packed(self) -> bool:
        """True if several images of the parent are unpacked to read one image."""
        return self._parent.packed

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        if isinstance(self._index, np.ndarray):
            return self._parent.read(self._index[index])
        start = self._index.start
        if isinstance(index, slice):
            return self._parent.read(slice(start + index.start, start + index.stop))
        return self._parent.read(start + index)
