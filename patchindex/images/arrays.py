"""Images in an array: in memory, memory-mapped, or any object that has a shape and can be sliced."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from patchindex.errors import InputError
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import first_line

__all__ = ["ArraySource"]


class Scaling(NamedTuple):
    """A scaling of uint8 images to floats x: `(x + offset) * factor` gives the uint8 image back.

    Messages name the range of x, `span`, and the formula, `code`.
    """

    offset: float
    factor: float
    span: str
    code: str


UNIT = Scaling(0.0, 255.0, "[0, 1]", "(x * 255)")
SIGNED = Scaling(1.0, 127.5, "[-1, 1]", "((x + 1) * 127.5)")

VALUES_PER_CHUNK = 2**22  # float values that are checked at once


class ArraySource(ImageSource):
    """Images of an array, read on demand.

    Parameters
    ----------
    array : array-like
        Shape (N, H, W) or (N, H, W, C), where C is 1 or 3. Values are uint8, or floats that are uint8 images
        scaled to [0, 1] or, if any value is negative, to [-1, 1]. The constructor checks all float values. An
        object with `shape`, `dtype` and slices (memory map, HDF5 dataset, zarr array) is read by slices; any
        other object is converted by `numpy.asarray`.
    name : str, optional
        The name of the source in messages and in the settings of a store.
    labels : array-like of int, shape (N,), optional

    Raises
    ------
    InputError
        If the layout or dtype is another, or float values are not finite, out of range, or not exactly
        scaled uint8 images.
    """

    def __init__(self, array: Any, *, name: str = "array", labels: Any = None) -> None:
        array = _as_sliceable(array, name)
        _check_dtype(array.dtype, name)
        super().__init__(name, _image_shape(tuple(array.shape or ()), name), labels=labels)
        self._array = array
        chunks = getattr(array, "chunks", None)  # of zarr and HDF5
        self.chunk = int(chunks[0]) if chunks and isinstance(chunks[0], int) else 1
        self._scaling = None if array.dtype == np.uint8 else self._find_scaling()

    def _open(self) -> AbstractContextManager[Any]:
        """Return the array in a context; a subclass opens a file here."""
        return nullcontext(self._array)

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        with self._open() as array:
            images = self._copy(array, index) if isinstance(index, slice) else self._gather(array, index)
        if self._scaling is not None:
            # float16 is too coarse for 0..255 and the fractions in between: it is widened to float32.
            wide: np.ndarray = images.astype(np.float64 if images.dtype.itemsize == 8 else np.float32)
            images = np.rint((wide + self._scaling.offset) * self._scaling.factor).astype(np.uint8)
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

    def _find_scaling(self) -> Scaling:
        """Check all float images in one pass and return their scaling."""
        eps = float(np.finfo(self._array.dtype).eps)
        low, high = np.inf, -np.inf
        inexact: dict[Scaling, int] = {}  # the first image that this scaling does not explain
        step = max(1, VALUES_PER_CHUNK // int(np.prod(self.shape[1:])))
        for start in range(0, len(self), step):
            with self._open() as array:
                raw = self._copy(array, slice(start, min(start + step, len(self))))
            x = raw.astype(np.float64).reshape(len(raw), -1)
            finite = np.isfinite(x).all(axis=1)
            if not finite.all():
                raise InputError(
                    f"image {start + int(np.argmin(finite))} holds NaN or infinity",
                    where=self.name,
                    remedy="remove or repair it: images must be finite",
                )
            low, high = min(low, float(x.min())), max(high, float(x.max()))
            if low < -1 - 2 * eps or high > 1 + 2 * eps:
                continue  # the message below needs the range of all images
            # Until a negative value is found, both scalings are possible.
            for scaling in [SIGNED] if low < 0 else [UNIT, SIGNED]:
                if scaling not in inexact:
                    levels = (x + scaling.offset) * scaling.factor
                    # The user scaled in the dtype of the array: rounding leaves errors under 255 eps.
                    wrong = (np.abs(levels - np.rint(levels)) > 255 * eps).any(axis=1)
                    if wrong.any():
                        inexact[scaling] = start + int(np.argmax(wrong))
        if low < -1 - 2 * eps or high > 1 + 2 * eps:
            raise InputError(
                f"float values from {low:.9g} to {high:.9g} are neither in [0, 1] nor in [-1, 1]",
                where=self.name,
                remedy="give uint8 images: x.round().astype(np.uint8)"
                if low >= 0 and high <= 255
                else "scale the images to uint8",
            )
        scaling = SIGNED if low < 0 else UNIT
        if scaling in inexact:
            raise InputError(
                f"image {inexact[scaling]} is not exactly a uint8 image scaled to {scaling.span}",
                where=self.name,
                remedy=f"round to uint8 yourself: {scaling.code}.round().astype(np.uint8)",
            )
        return scaling


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


def _image_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int, int]:
    """Return (N, H, W, C); `ImageSource` refuses empty dimensions."""
    if len(shape) == 3:
        return (*shape, 1)
    if len(shape) != 4:
        raise InputError(
            f"shape {shape} is not (N, H, W) or (N, H, W, C)",
            where=name,
            remedy="reshape the images, for example x.reshape(-1, 28, 28)",
        )
    if shape[3] not in (1, 3):
        if shape[1] in (1, 3):
            remedy = "it looks like (N, C, H, W), so transpose it: x.transpose(0, 2, 3, 1)"
        elif shape[3] == 4:
            remedy = "drop the alpha channel: x[..., :3]"
        else:
            remedy = "give images with 1 or 3 channels, the channels last"
        raise InputError(f"shape {shape} is not (N, H, W, 1) or (N, H, W, 3)", where=name, remedy=remedy)
    return shape
