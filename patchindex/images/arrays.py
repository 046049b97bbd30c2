"""Images in an array: in memory, memory-mapped, or any object that has a shape and can be sliced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from patchindex.errors import InputError, Option
from patchindex.images.axes import in_axes
from patchindex.images.float_values import FloatValues, Scaling, choose_scaling
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import first_line
from patchindex.images.untrusted import check_announced, check_regular

__all__ = ["ArraySource", "choose_values"]


VALUES_PER_CHUNK = 2**22  # float values that are checked at once


class ArraySource(ImageSource):
    """Images of an array, read on demand.

    Parameters
    ----------
    array : array-like
        Shape (N, H, W) or (N, H, W, C), where C is 1 or 3. Values are uint8, or floats that are uint8 images
        scaled to [0, 1] or to [-1, 1]. The constructor checks all float values. An
        object with `shape`, `dtype` and slices (memory map, HDF5 dataset, zarr array) is read by slices; any
        other object is converted by `numpy.asarray`.
    name : str, optional
        The name of the source in messages and in the settings of a store.
    labels : array-like of int, shape (N,), optional
    axes : {"NHW", "NHWC", "NCHW", "HW", "HWC", "CHW"}, optional
        The order of the axes. An array without N holds one image.
    saved : bool, optional
        The array is that of a file, which may hold one image of shape (3, H, W): this shape needs `axes`.

    Raises
    ------
    InputError
        If the layout or dtype is another, or float values are not finite, out of range, or not exactly
        scaled uint8 images.
    """

    def __init__(
        self,
        array: Any,
        *,
        name: str = "array",
        labels: Any = None,
        axes: str | None = None,
        saved: bool = False,
    ) -> None:
        array = _as_sliceable(array, name)
        _check_dtype(array.dtype, name)
        array, shape, self._channels_first = in_axes(array, axes, name, saved=saved)
        super().__init__(name, shape, labels=labels)
        self._array = array
        self._map = _map_below(array)
        chunks = getattr(array, "chunks", None)  # of zarr and HDF5
        self.chunk = int(chunks[0]) if chunks and isinstance(chunks[0], int) else 1
        # None for uint8, and until `choose_values` is called.
        self._scaling: Scaling | None = None
        self.float_values = None if array.dtype == np.uint8 else self._find_floats()

    def _open(self) -> AbstractContextManager[Any]:
        """Return the array in a context; a subclass opens a file here."""
        if self._map is not None:
            _check_map(self._map, self.name)
        return nullcontext(self._array)

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        with self._open() as array:
            images = self._copy(array, index) if isinstance(index, slice) else self._gather(array, index)
        if self.float_values is not None:
            if self._scaling is None:
                choose_values([self])
            assert self._scaling is not None
            # float16 is too coarse for 0..255 and the fractions in between: it is widened to float32.
            wide: np.ndarray = images.astype(np.float64 if images.dtype.itemsize == 8 else np.float32)
            images = np.rint(self._scaling.levels(wide)).astype(np.uint8)
        if self._channels_first:
            images = np.moveaxis(images, 1, 3)
        return np.ascontiguousarray(images).reshape(-1, *self.shape[1:])

    def _copy(self, array: Any, index: slice) -> np.ndarray:
        if isinstance(array, np.ndarray):
            return np.array(array[index])
        try:
            return np.array(array[index])
        except (InputError, MemoryError):
            raise
        except Exception as error:  # storage libraries raise errors of any type for damage or a lost network
            raise InputError(
                f"images {index.start} to {index.stop - 1} cannot be read ({first_line(error)})",
                where=self.name,
                remedy="if the file is damaged, copy or make it again",
            ) from error

    def _gather(self, array: Any, ids: np.ndarray) -> np.ndarray:
        if isinstance(array, np.ndarray):
            return np.asarray(array[ids])
        # One slice reads all ids of a storage chunk, so that no chunk is decompressed twice.
        ordered, inverse = np.unique(ids, return_inverse=True)
        groups = np.split(ordered, np.flatnonzero(np.diff(ordered // self.chunk)) + 1)
        parts = [self._copy(array, slice(int(g[0]), int(g[-1]) + 1))[g - g[0]] for g in groups]
        return np.concatenate(parts)[inverse]

    def _find_floats(self) -> FloatValues:
        """Check all float images in one pass."""
        step = max(1, VALUES_PER_CHUNK // int(np.prod(self.shape[1:])))

        def blocks() -> Iterator[tuple[int, np.ndarray]]:
            for start in range(0, len(self), step):
                with self._open() as array:
                    yield start, self._copy(array, slice(start, min(start + step, len(self))))

        return FloatValues.find(blocks(), self._array.dtype, self.name)

    def __getstate__(self) -> dict[str, Any]:
        if type(self._array).__module__.partition(".")[0] == "h5py":
            raise InputError(
                "an open dataset of HDF5 cannot be given to another process",
                where=self.name,
                remedy="open the images by the path of the file, FILE.h5::path/in/file",
            )
        state = self.__dict__.copy()
        # The map of a temporary file has no name.
        if self._map is not None and self._map is self._array and self._map.filename is not None:
            # A process that gets the source maps the file again, instead of getting a copy of all images.
            array = self._map
            order = "C" if array.flags.c_contiguous else "F"
            state["_array"] = state["_map"] = None
            state["_mapped"] = (array.filename, array.dtype, array.offset, array.shape, order)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        mapped = state.pop("_mapped", None)
        self.__dict__.update(state)
        if mapped is not None:
            path, dtype, offset, shape, order = mapped
            size = check_regular(path).st_size
            check_announced(offset + dtype.itemsize * math.prod(shape), size, self.name)
            self._array = self._map = np.memmap(path, dtype, "r", offset, shape, order)


def choose_values(sources: Sequence[ImageSource], values: str | None = None) -> None:
    """Choose one reading of the floats of several sources, which are the files of one source.

    `values` is "unit", "signed", or None to find out.
    """
    floats = [s for s in sources if isinstance(s, ArraySource) and s.float_values is not None]
    if not floats:
        if values is not None:
            raise InputError(
                "images are not floats", where=sources[0].name, remedy=["leave out ", Option("values")]
            )
        return
    scaling = choose_scaling([s.float_values for s in floats if s.float_values is not None], values)
    for source in floats:
        source._scaling = scaling


def _map_below(array: Any) -> np.memmap | None:
    """Return the memory map that an array is a view of, None if there is none."""
    if not isinstance(array, np.memmap):
        return None
    while isinstance(array.base, np.memmap):
        array = array.base
    return array


def _check_map(array: np.memmap, name: str) -> None:
    """Refuse a mapped file that is shorter than it was: reading behind its end would kill the process."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and mapped.size() < array.offset + array.nbytes:
        raise InputError(
            "has become shorter since it was opened",
            where=name,
            remedy="do not write to the file while it is read; copy it again",
        )


def _as_sliceable(array: Any, name: str) -> Any:
    if isinstance(getattr(array, "dtype", None), np.dtype) and hasattr(array, "__getitem__"):
        return array
    try:
        return np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot be read as an array of images ({first_line(error)})",
            where=name,
            remedy="give a uint8 NumPy array or CPU tensor of shape (N, H, W, C)",
        ) from error


def _check_dtype(dtype: np.dtype, name: str) -> None:
    if dtype == np.uint8 or (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)):
        return
    remedy = {
        "O": "stack images of one size into one uint8 array (Python objects are never loaded)",
        "b": "give x.astype(np.uint8) * 255",
        "i": "if the values are 0 to 255, give x.astype(np.uint8)",
        "u": "if the values are 0 to 255, give x.astype(np.uint8)",
    }.get(dtype.kind, "give a uint8 array with values 0 to 255")
    raise InputError(f"dtype {dtype} is not uint8 or float", where=name, remedy=remedy)
