"""Several sources as one source, in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchindex.errors import InputError
from patchindex.images.file_names import FileNames
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import plain_name

__all__ = ["ConcatSource"]


class ConcatSource(ImageSource):
    """The images of several sources of one size, one after the other.

    Either all parts have labels, or no part has labels. Labels with names are matched by name; labels
    without names, after labels with names, are numbers of these names.
    """

    def __init__(self, parts: Sequence[ImageSource], name: str | None = None) -> None:
        if not parts:
            raise InputError("there are none", parameter="sources", remedy="give at least one")
        first = parts[0]
        for part in parts[1:]:
            if part.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"images have shape {part.shape[1:]}, unlike {first.shape[1:]} of those before",
                    where=part.name,
                    remedy="bring them to the same size and channels",
                )
            if (part.labels is None) != (first.labels is None):
                has, remedy = ("no ", "give labels") if part.labels is None else ("", "leave them out")
                raise InputError(
                    f"images have {has}labels, unlike those before", where=part.name, remedy=remedy
                )
        labels, names = (None, None) if first.labels is None else _joined_labels(parts)
        ends = np.cumsum([len(part) for part in parts])
        super().__init__(
            name or first.name, (int(ends[-1]), *first.shape[1:]), labels=labels, label_names=names
        )
        self.skipped = tuple(skipped for part in parts for skipped in part.skipped)
        self.kept = _joined_kept(parts)
        self.file_names = FileNames.joined([(part.file_names, len(part)) for part in parts])
        self._parts, self._ends = tuple(parts), ends
        if all(part.chunk == first.chunk for part in parts) and not (ends[:-1] % first.chunk).any():
            self.chunk = first.chunk

    @property
    def packed(self) -> bool:
        """True if several images of a part are unpacked to read one image."""
        return any(part.packed for part in self._parts)

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        ids = np.arange(index.start, index.stop) if isinstance(index, slice) else index
        owner = np.searchsorted(self._ends, ids, "right")
        out = np.empty((len(ids), *self.shape[1:]), np.uint8)
        for i in np.unique(owner):
            rows, part = np.flatnonzero(owner == i), self._parts[i]
            out[rows] = part.read(ids[rows] - (self._ends[i] - len(part)))
        return out


def _joined_labels(parts: Sequence[ImageSource]) -> tuple[np.ndarray, list[str] | None]:
    """Return all labels and their names: equal names get the same number, new names get the next one."""
    names = None if parts[0].label_names is None else list(map(plain_name, parts[0].label_names))
    joined = []
    for part in parts:
        labels = np.asarray(part.labels)
        if part.label_names is not None:
            if names is None:
                raise InputError(
                    "labels have names, and the labels before have none",
                    where=part.name,
                    remedy="give a file of numbers",
                )
            own = list(map(plain_name, part.label_names))
            names += [name for name in own if name not in names]
            labels = np.array([names.index(name) for name in own], np.int64)[labels]
        elif names is not None and not ((labels >= 0) & (labels < len(names))).all():
            raise InputError(
                f"labels have no names, and the labels before have {len(names)}",
                where=part.name,
                remedy=f"give numbers from 0 to {len(names) - 1}, or labels with names",
            )
        joined.append(labels)
    return np.concatenate(joined), names


def _joined_kept(parts: Sequence[ImageSource]) -> np.ndarray | None:
    """Return the position of each image among all images found in the parts; None if each part kept all."""
    if all(part.kept is None for part in parts):
        return None
    kept, before = [], 0
    for part in parts:
        kept.append(before + (np.arange(len(part)) if part.kept is None else part.kept))
        before += part.found
    return np.concatenate(kept)
