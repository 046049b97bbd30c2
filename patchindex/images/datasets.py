"""Data set objects of torchvision and Hugging Face `datasets`, recognised by their interface."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from PIL import Image

from patchindex.errors import InputError, Option, PatchIndexWarning, warn
from patchindex.images.format import Options
from patchindex.images.pictures import BadImageError, PictureSource, check_depth, decoding, is_gray
from patchindex.runtime import PicklableLock

__all__ = ["DatasetSource", "is_dataset"]


def is_dataset(source: Any) -> bool:
    """Return whether an object is a map-style data set, and not an array or a list."""
    if isinstance(source, list | tuple | bytes) or hasattr(source, "dtype"):
        return False
    return hasattr(source, "__len__") and hasattr(source, "__getitem__")


_NO_NUMBERS = (str, bytes, dict, list, tuple)  # labels of captions, attributes, and boxes


class DatasetSource(PictureSource):
    """The images of a map-style data set.

    A Hugging Face `Dataset` needs one column of images; labels are in the column `label`, or else in the only
    column of class labels. Items of a torch data set are an image, or (image, label, ...). Images are Pillow
    images, arrays (H, W) or (H, W, C), or tensors (C, H, W); uint8, or floats in [0, 1].

    The constructor reads items until one has colours, which makes all images RGB. It reads all items if only
    the items have labels, and with `options.skip_bad`.
    """

    def __init__(self, dataset: Any, options: Options) -> None:
        transform, skip_bad = options.transform, options.skip_bad
        self._items, self._transform = _Items(dataset, options.axes), transform
        name, count = self._items.name, len(dataset)
        if not count:
            raise InputError("holds no images", where=name, remedy="give at least one image")
        stored, names = self._items.stored_labels()
        first, gray = None, True
        kept: list[int] = []
        labels: list[Any] = []
        lost = False
        skipped: list[str] = []
        for i in range(count):
            try:
                image, label = self._items.read(i)
            except BadImageError:
                if not skip_bad:
                    raise
                skipped.append(f"item {i}")
                continue
            kept.append(i)
            if isinstance(label, _NO_NUMBERS) or np.ndim(label) > 0:
                label, lost = None, True
            labels.append(label)
            first = first or image
            gray = gray and is_gray(image)
            if stored is not None and label is not None and not np.array_equal(stored[i], label):
                stored = names = None  # the items have labels of their own
            labels_known = stored is not None or label is None
            if labels_known and not skip_bad and (transform.grayscale or not gray):
                break
        if first is None:
            raise InputError(
                f"none of {count} images can be read", where=name, remedy="check which kind of items they are"
            )
        size = transform.size(first.height, first.width, where=name)
        self._ids = np.array(kept) if skipped else np.arange(count)
        own: Any = None
        if labels[0] is not None:
            own = labels if stored is None else stored[self._ids]
        if lost and options.labels.kind == "stored":
            warn(
                PatchIndexWarning(
                    "labels that are no numbers are left out",
                    where=name,
                    remedy=["number the classes, and give ", Option("labels")],
                )
            )
        channels = 1 if gray or transform.grayscale else 3
        super().__init__(name, (len(self._ids), *size, channels), labels=own)
        if skipped:
            self.skipped, self.kept = tuple(skipped), self._ids
        if names and self.labels is not None and ((self.labels >= 0) & (self.labels < len(names))).all():
            self.label_names = names

    def _where(self, i: int) -> str:
        return f"{self.name}, item {self._ids[i]}"

    def _picture(self, i: int) -> AbstractContextManager[Image.Image]:
        return nullcontext(self._items.read(int(self._ids[i]))[0])


class _Items:
    """The items of a data set, read by one thread at a time: many data sets share one file handle."""

    def __init__(self, dataset: Any, axes: str | None) -> None:
        if axes not in (None, "HW", "HWC", "CHW"):
            raise InputError(f"items have no axes {axes}", parameter="axes", remedy="give HW, HWC or CHW")
        self._axes = axes
        self.name = f"{type(dataset).__module__.partition('.')[0]}.{type(dataset).__name__}"
        self._dataset, self._lock = dataset, PicklableLock()
        # The columns of a table; None if an item is an image, or a tuple that begins with an image.
        self._image: str | None = None
        self._label: str | None = None
        features = getattr(dataset, "features", None)
        if not hasattr(dataset, "column_names") or features is None:
            return
        kinds = [(column, type(kind).__name__) for column, kind in features.items()]
        images = [column for column, kind in kinds if kind == "Image"]
        if len(images) != 1:
            raise InputError(
                f"has {len(images)} columns of images, expected one",
                where=self.name,
                remedy="select one column",
            )
        classes = [column for column, kind in kinds if kind == "ClassLabel"]
        self._image = images[0]
        self._label = "label" if "label" in features else (classes[0] if len(classes) == 1 else None)

    def read(self, i: int) -> tuple[Image.Image, Any]:
        """Return a decoded image, and its label or None; `BadImageError` if it cannot be decoded."""
        where = f"{self.name}, item {i}"
        with self._lock, decoding(where):
            item = self._dataset[i]
            label: Any = None
            if self._image is not None:
                item, label = item[self._image], item.get(self._label)
            elif isinstance(item, tuple | list):
                item, label = item[0], item[1] if len(item) > 1 else None
            image = _as_image(item, i, self.name, self._axes)
            check_depth(image, where)
            image.load()
        return image, label

    def stored_labels(self) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
        """Return the labels that are stored apart from the items, and their names; each may be None."""
        labels, names = None, getattr(self._dataset, "classes", None)
        if self._label is not None:
            labels = self._dataset[self._label]
            names = getattr(self._dataset.features[self._label], "names", None) or names
        elif getattr(self._dataset, "target_transform", None) is not None:
            return None, None  # the items have other labels
        else:
            found = (getattr(self._dataset, name, None) for name in ("targets", "labels"))
            labels = next((v for v in found if _is_of_length(v, len(self._dataset))), None)
        return (
            None if labels is None else np.asarray(labels),
            None if names is None else tuple(map(str, names)),
        )


def _is_of_length(value: Any, length: int) -> bool:
    """Return whether an attribute of a data set has an entry per item; a method or a number has no length."""
    return isinstance(value, Sized) and getattr(value, "shape", None) != () and len(value) == length


def _as_image(item: Any, i: int, name: str, axes: str | None) -> Image.Image:
    if isinstance(item, Image.Image):
        return item
    try:
        array = np.asarray(item)
        if axes is None and array.ndim == 3:
            first, last = array.shape[0] in (1, 3), array.shape[2] in (1, 3)
            if first and last and array.shape != (1, 1, 1):
                raise InputError(
                    f"shape {array.shape} of item {i} may be (H, W, C) or (C, H, W)",
                    where=name,
                    remedy=["say which, with ", Option("axes", "HWC"), " or ", Option("axes", "CHW")],
                )
            axes = "CHW" if first else "HWC"  # a tensor of torch, or an array
        if array.ndim != len(axes or "HW"):
            raise ValueError(f"it has {array.ndim} axes, not {axes or 'HW'}")
        if axes == "CHW":
            array = np.moveaxis(array, 0, 2)
        if array.dtype != np.uint8:
            levels = array.astype(np.float64) * 255
            exact = (np.abs(levels - np.rint(levels)) < 0.01).all()
            if not exact or levels.min() < -0.01 or levels.max() > 255.01:
                raise ValueError("its floats are not a uint8 image over 255")
            array = np.rint(levels).astype(np.uint8)
        return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(
            f"item {i} is not an image ({error})", where=name, remedy="give Pillow images or uint8 arrays"
        ) from error
