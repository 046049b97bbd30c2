"""Labels: where they come from, and the check that every image has one integer."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from patchindex.errors import InputError, Option
from patchindex.images.unreadable import first_line

__all__ = ["LabelSpec", "LabelsLike", "as_labels"]

ATTRIBUTES = "attr:"


@dataclass(frozen=True, eq=False)
class LabelSpec:
    """Where the labels of images come from.

    "stored": with the images, if there are any; "none": no labels; "folders": the sub-folders of image files;
    "attributes" of CelebA; "file": the file `path`; "array": `values` of shape (N,).
    """

    kind: Literal["stored", "none", "folders", "attributes", "file", "array"] = "stored"
    attributes: tuple[str, ...] = ()
    path: Path | None = None
    values: ArrayLike | None = None

    @classmethod
    def parse(cls, labels: LabelsLike | None) -> LabelSpec:
        """Return the meaning of a parameter `labels`, as `open_images` documents it."""
        if labels is None:
            return cls()
        if isinstance(labels, LabelSpec):
            return labels
        if not isinstance(labels, str | os.PathLike):
            return cls("array", values=labels)
        if labels == "folders" or labels == "none":
            return cls("folders" if labels == "folders" else "none")
        if isinstance(labels, str) and labels.startswith(ATTRIBUTES):
            names = tuple(name for name in labels.removeprefix(ATTRIBUTES).split(",") if name)
            if not names:
                raise InputError(
                    f"{labels!r} names no attribute",
                    parameter="labels",
                    remedy='give for example "attr:Smiling"',
                )
            return cls("attributes", attributes=names)
        return cls("file", path=Path(labels))

    @property
    def separate(self) -> bool:
        """True for labels from a file or an array, which do not come with the images."""
        return self.kind in ("file", "array")

    def absolute(self) -> LabelSpec:
        """Return the same labels for a process in another working directory."""
        return self if self.path is None else replace(self, path=self.path.absolute())


LabelsLike: TypeAlias = LabelSpec | ArrayLike | str | os.PathLike[str]  # a parameter `labels`, if given


def as_labels(values: Any, count: int, *, where: object = None) -> np.ndarray:
    """Return labels as a new int64 array of shape (count,), of integers or integral floats.

    Labels of shape (count, 1) are accepted. Other shapes and types are refused before values are read.
    `where` is the file of the labels, for messages; by default the parameter `labels`.
    """

    def refused(what: str, remedy: str | list[str | Option]) -> InputError:
        return InputError(what, parameter="labels" if where is None else None, where=where, remedy=remedy)

    def check(shape: tuple[int, ...], dtype: np.dtype) -> None:
        if len(shape) != 1 and shape[1:] != (1,):
            remedy: list[str | Option] = ["give one integer per image"]
            if where is not None:
                remedy += [", or leave the labels out with ", Option("labels", "none")]
            raise refused(f"labels have shape {shape}, expected ({count},)", remedy)
        if shape[0] != count:
            raise refused(
                f"{shape[0]} labels for {count} images",
                "give one label per image, in the order of the images",
            )
        if dtype.kind not in "iuf":
            raise refused(
                f"labels have dtype {dtype}, expected integers",
                "number the classes: np.unique(labels, return_inverse=True)[1]",
            )

    if isinstance(getattr(values, "dtype", None), np.dtype):  # also of a file that is not read yet
        check(tuple(values.shape or ()), values.dtype)
    try:
        array = np.asarray(values)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # values of a damaged file: storage libraries raise errors of any type
        raise refused(
            f"labels cannot be read as an array ({first_line(error)})", "give one integer per image"
        ) from error
    check(array.shape, array.dtype)
    array = array.reshape(count)
    if array.dtype.kind != "i":
        # From 2**53 on, a float cannot tell neighbouring integers apart; int64 ends at 2**63.
        bound = 2.0**53 if array.dtype.kind == "f" else 2.0**63
        fits = np.isfinite(array) & (np.abs(array) < bound)
        wrong = ~(fits & (np.where(fits, array, 0) % 1 == 0))
        if wrong.any():
            first = int(np.argmax(wrong))
            raise refused(
                f"label {first} is {array[first]}, not an integer that int64 holds", "give integer labels"
            )
    return array.astype(np.int64)
