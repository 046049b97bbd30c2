"""What a format is asked for when it opens a path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from patchindex.images.transform import Transform

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """Options of every format's `open(path, options)`, checked by `open_images`.

    Parameters
    ----------
    dataset : str, optional
        Path of the images inside a file that holds several arrays.
    labels : {"stored", "folders", "none"}, optional
        The labels that the file holds, if it does; the names of sub-folders; or none.
    transform : Transform, optional
        What is done to the images.
    skip_bad : bool, optional
        Leave out image files that cannot be decoded.
    split : {"train", "valid", "test", "all"}, optional
        The part of a set that comes with a partition.
    attributes : tuple of str, optional
        Attributes of a set that comes with such, which the labels are made of.

    Examples
    --------
    >>> Options().labels
    'stored'
    """

    dataset: str | None = None
    labels: Literal["stored", "folders", "none"] = "stored"
    transform: Transform = field(default_factory=Transform)
    skip_bad: bool = False
    split: str | None = None
    attributes: tuple[str, ...] = ()
