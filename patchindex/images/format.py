"""The contract of an image format; docs/adding-an-image-format.md has a complete example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from patchindex.errors import printable
from patchindex.images.labels import LabelSpec
from patchindex.images.source import ImageSource
from patchindex.images.transform import Transform

__all__ = ["Format", "Options"]

Feature = Literal[
    "arrays", "dataset", "external_links", "split", "folders", "attributes", "pictures", "transform"
]


@dataclass(frozen=True)
class Options:
    """The options of `open_images`, checked, as a format receives them.

    `dataset` is the path of the images inside a file that holds several arrays; `split` the part of a set
    that has a partition, "train", "valid", "test" or "all"; `skip_bad` leaves out image files that cannot be
    decoded; `axes` is the order of the axes of an array, and `values` the range of its floats;
    `external_links` follows links to other HDF5 files; `max_pixels` is the size of the largest image file.
    """

    dataset: str | None = None
    labels: LabelSpec = field(default_factory=LabelSpec)
    transform: Transform = field(default_factory=Transform)
    skip_bad: bool = False
    split: str | None = None
    axes: str | None = None
    values: str | None = None
    external_links: bool = False
    max_pixels: int | None = None

    def name_of(self, path: object) -> str:
        """Return the name of the source at a path: the path, and the dataset inside."""
        return printable(path if self.dataset is None else f"{path}::{self.dataset}")


@dataclass(frozen=True)
class Format:
    """An image format.

    Parameters
    ----------
    description : str
        For the list of formats in messages, such as ".npy".
    matches : callable
        `matches(path)` tells whether an existing path is in this format.
    open : callable
        `open(path, options)` returns an `ImageSource` or raises `InputError`.
    features : tuple, optional
        The options that `open` takes care of: "dataset", "external_links", "split", labels from "folders",
        labels from "attributes", "transform"; "arrays" for `axes` (`open_images` sees to `values`);
        "pictures" for `max_pixels` and `skip_bad`. `open_images` refuses an option that the format does not
        name; it applies the transform itself if the format does not name it.
    matches_anything : bool
        True for a format that is asked last, because it matches what other formats match too.
    """

    description: str
    matches: Callable[[Path], bool]
    open: Callable[[Path, Options], ImageSource]
    features: tuple[Feature, ...] = ()
    matches_anything: bool = False
