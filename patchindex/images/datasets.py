"""Data sets of torchvision and Hugging Face `datasets`, which are on disk already: by what they look like."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from patchindex.errors import InputError
from patchindex.images.files import in_parallel
from patchindex.images.source import ImageSource
from patchindex.images.transform import Transform

__all__ = ["DatasetSource", "is_dataset"]


def is_dataset(source: Any) -> bool:
    """Whether an object is a data set by number, and not an array or a list.

    Examples
    --------
    >>> is_dataset([np.zeros((2, 2))]), is_dataset(np.zeros((1, 2, 2)))
    (False, False)
    """
    by_number = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return (
        by_number
        and not isinstance(source, list | tuple | str | bytes | dict)
        and not hasattr(source, "dtype")
    )


class DatasetSource(ImageSource):
    """The images of a map-style data set, one by one.

    Of Hugging Face: a `Dataset` with one column of images, and its labels in a column `label`, or in another
    of class labels. Of torch: items that are an image, or (image, label, ...). Images are Pillow's, or arrays
    (H, W) or (H, W, C), or tensors (C, H, W); uint8, or floats in [0, 1].

    Parameters
    ----------
    dataset : object
    transform : Transform
        What is done to every image.

    Raises
    ------
    InputError
        No images in it, or such as cannot be used.

    Examples
    --------
    >>> class Two:
    ...     def __len__(self):
    ...         return 2
    ...     def __getitem__(self, i):
    ...         return Image.new("L", (6, 4), 9 * i), 7 + i
    >>> source = DatasetSource(Two(), Transform())
    >>> source.shape, source.labels.tolist(), int(source[1].max())
    ((2, 4, 6, 1), [7, 8], 9)
    """

    def __init__(self, dataset: Any, transform: Transform) -> None:
        self._dataset, self._transform = dataset, transform
        name = f"{type(dataset).__module__.partition('.')[0]}.{type(dataset).__name__}"
        if not len(dataset):
            raise InputError("holds no images", where=name, remedy="give at least one image")
        self._image, label = _columns(dataset, name)
        first = self._picture(0, name)
        height, width = transform.size(first.height, first.width, where=name)
        gray = transform.grayscale or first.mode in ("1", "L", "LA")
        labels = _labels(dataset, label)
        super().__init__(name, (len(dataset), height, width, 1 if gray else 3), labels=labels)
        names = getattr(getattr(dataset, "features", {}).get(label), "names", None) if label else None
        names = names or getattr(dataset, "classes", None)
        self.label_names = None if names is None or labels is None else tuple(map(str, names))

    def _picture(self, i: int, name: str) -> Image.Image:
        item = self._dataset[i]
        found = item[self._image] if self._image is not None else item
        if isinstance(found, Image.Image):
            return found
        try:
            array = np.asarray(found)
            if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
                array = np.moveaxis(array, 0, 2)  # a tensor
            if array.dtype != np.uint8:
                wide = array.astype(np.float64) * 255
                if (
                    not (np.abs(wide - np.rint(wide)) < 0.01).all()
                    or wide.min() < -0.01
                    or wide.max() > 255.01
                ):
                    raise ValueError("floats that are no uint8 images over 255")
                array = np.rint(wide).astype(np.uint8)
            return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"item {i} is no image ({error})", where=name, remedy="give Pillow images or uint8 arrays"
            ) from error

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        ids = range(index.start, index.stop) if isinstance(index, slice) else index.tolist()
        out = np.empty((len(ids), *self.shape[1:]), np.uint8)

        def decode(row: int) -> None:
            pixels = self._transform.apply(
                self._picture(ids[row], self.name), "L" if self.shape[3] == 1 else "RGB"
            )
            if pixels.shape != self.shape[1:]:
                raise InputError(
                    f"item {ids[row]} is of shape {pixels.shape}, the first of {self.shape[1:]}",
                    where=self.name,
                    remedy="bring all images to one size with resize=32, say",
                )
            out[row] = pixels

        in_parallel(decode, range(len(ids)))
        return out


def _columns(dataset: Any, name: str) -> tuple[Any, Any]:
    """Return where an item's image is, None for the item itself, and where its label, None for nowhere."""
    features = getattr(dataset, "features", None)
    if hasattr(dataset, "column_names") and features is not None:
        images = [column for column, kind in features.items() if type(kind).__name__ == "Image"]
        if len(images) != 1:
            raise InputError(
                f"has {len(images)} columns of images, expected one", where=name, remedy="select one column"
            )
        classes = [column for column, kind in features.items() if type(kind).__name__ == "ClassLabel"]
        return images[0], "label" if "label" in features else (classes[0] if len(classes) == 1 else None)
    item = dataset[0]
    if isinstance(item, tuple | list):
        return 0, 1 if len(item) > 1 and np.ndim(item[1]) == 0 and not isinstance(item[1], str) else None
    return None, None


def _labels(dataset: Any, label: Any) -> Any:
    """Return all labels, without decoding images where the data set has them apart."""
    if label is None:
        return None
    if isinstance(label, str):
        return dataset[label]
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None and len(found) == len(dataset):
            return np.asarray(found)
    return [dataset[i][label] for i in range(len(dataset))]
