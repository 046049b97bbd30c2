"""Several sources as one, in their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchindex.errors import InputError
from patchindex.images.source import ImageSource

__all__ = ["ConcatSource"]


def _joined(parts: Sequence[ImageSource]) -> tuple[np.ndarray | None, list[str] | None]:
    """Return all labels, and their names: labels of the same name get the same number, new names the next."""
    names = None if parts[0].label_names is None else list(parts[0].label_names)
    labels = []
    for part in parts:
        if part.labels is None:
            return None, None
        own = part.labels
        if part.label_names is not None:
            if names is None:
                raise InputError(
                    "labels have names, and those before are numbers",
                    where=part.name,
                    remedy="give a file of numbers",
                )
            names += [name for name in part.label_names if name not in names]
            own = np.array([names.index(name) for name in part.label_names], np.int64)[own]
        elif names is not None and not ((own >= 0) & (own < len(names))).all():
            raise InputError(
                f"labels are numbers, and those before have {len(names)} names",
                where=part.name,
                remedy=f"give numbers from 0 to {len(names) - 1}, or labels with names",
            )
        labels.append(own)
    return np.concatenate(labels), names


def _all_kept(parts: Sequence[ImageSource]) -> np.ndarray | None:
    """Return the places of all images among those of all parts, None where none was skipped."""
    if all(part.kept is None for part in parts):
        return None
    kept, before = [], 0
    for part in parts:
        kept.append(before + (np.arange(len(part)) if part.kept is None else part.kept))
        before += len(part) + (0 if part.kept is None else len(part.skipped))
    return np.concatenate(kept)


class ConcatSource(ImageSource):
    """The images of several sources, one after the other.

    Parameters
    ----------
    parts : sequence of ImageSource
        Of images of one size; with labels either all or none. Labels that have names are the same where their
        names are.
    name : str, optional
        By default that of the first.

    Raises
    ------
    InputError
        No sources, or such as do not fit together.

    Examples
    --------
    >>> from patchindex.images import open_images
    >>> both = ConcatSource([open_images(np.full((n, 2, 2), n, np.uint8)) for n in (1, 2)])
    >>> both[:].reshape(3, -1)[:, 0].tolist()
    [1, 2, 2]
    """

    def __init__(self, parts: Sequence[ImageSource], name: str | None = None) -> None:
        if not parts:
            raise InputError("there are none", where="sources", remedy="give at least one")
        first = parts[0]
        for part in parts[1:]:
            if part.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"images are of shape {part.shape[1:]}, those before of {first.shape[1:]}",
                    where=part.name,
                    remedy="bring them to the same size and channels",
                )
            if (part.labels is None) != (first.labels is None):
                has, remedy = ("no ", "give labels") if part.labels is None else ("", "leave them out")
                raise InputError(
                    f"images have {has}labels, unlike those before", where=part.name, remedy=remedy
                )
        labels, names = _joined(parts)
        ends = np.cumsum([len(part) for part in parts])
        super().__init__(
            name or first.name,
            (int(ends[-1]), *first.shape[1:]),
            labels=labels,
            label_names=names,
        )
        self.skipped = tuple(skipped for part in parts for skipped in part.skipped)
        self.kept = _all_kept(parts)
        self._parts, self._ends = tuple(parts), ends

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        ids = np.arange(index.start, index.stop) if isinstance(index, slice) else index
        owner = np.searchsorted(self._ends, ids, "right")
        out = np.empty((len(ids), *self.shape[1:]), np.uint8)
        for i in np.unique(owner):
            mine, part = np.flatnonzero(owner == i), self._parts[i]
            out[mine] = part.read(ids[mine] - (self._ends[i] - len(part)))
        return out
