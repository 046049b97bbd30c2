"""A folder or zip archive of image files, decoded by Pillow when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchindex.errors import InputError
from patchindex.images.files import (
    GRAY_MODES,
    SUFFIXES,
    BadImageError,
    Files,
    files_at,
    in_parallel,
    opened_image,
)
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.transform import Transform

__all__ = ["DESCRIPTION", "FolderSource", "matches", "open", "open_files"]

DESCRIPTION = f"folder or .zip of images ({' '.join(SUFFIXES)})"


class FolderSource(ImageSource):
    """Image files, decoded when asked for, on all cores.

    Made by `open_files`, which has checked the files' headers.

    Parameters
    ----------
    files : Files
        Where they are.
    names : sequence of str
        Their relative names.
    shape : tuple of int
        (N, H, W, C) after the transform.
    transform : Transform
        What is done to every image.
    labels, label_names
        As in `ImageSource`.

    Attributes
    ----------
    names : tuple of str
        As given.
    """

    def __init__(
        self,
        files: Files,
        names: Sequence[str],
        shape: tuple[int, int, int, int],
        transform: Transform,
        *,
        labels: Sequence[int] | np.ndarray | None = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(str(files.root), shape, labels=labels, label_names=label_names)
        self.names = tuple(names)
        self._files, self._transform = files, transform

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        names = self.names[index] if isinstance(index, slice) else [self.names[i] for i in index]
        result = np.empty((len(names), *self.shape[1:]), np.uint8)

        def decode(row: int) -> None:
            pixels = _decoded(self._files, names[row], self._transform, self.shape[3] == 1)
            if pixels.shape != self.shape[1:]:
                raise InputError(
                    "has another size than when the folder was opened",
                    where=self._files.root / names[row],
                    remedy="open the folder again",
                )
            result[row] = pixels

        in_parallel(decode, range(len(names)))
        return result


def _decoded(files: Files, name: str, transform: Transform, gray: bool) -> np.ndarray:
    with opened_image(files, name) as image:
        return transform.apply(image, "L" if gray else "RGB")


def matches(path: Path) -> bool:
    """Whether the path is a folder, or a file called .zip."""
    return path.is_dir() or path.suffix.lower() == ".zip"


def open(path: Path, options: Options) -> ImageSource:
    """Open a folder or zip archive of image files, sub-folders included, in the order of their names.

    Files and folders whose names start with a dot are left out. Images have one channel if all of them have,
    or if grayscale is asked for; otherwise they are converted to RGB. Transparency is dropped, the first
    frame of an animation is taken, and EXIF orientation is ignored, as in torchvision.

    With `options.labels == "folders"` an image's label is the number of the first folder on its path that not
    all images are in, folders sorted by name. With `options.skip_bad` every image is decoded once, and those
    that cannot be are left out.

    Raises
    ------
    InputError
        No images, one that cannot be read or has more than 8 bits a channel, sizes that differ after the
        transform, or labels from folders where an image is in none.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("cat.png", "dog.png"):
    ...         Image.new("RGB", (32, 24)).save(Path(folder) / name)
    ...     open(Path(folder), Options()).shape
    (2, 24, 32, 3)
    """
    files = files_at(path)
    source = open_files(files, files.names(), options)
    if options.labels == "folders":
        source.label_names, source.labels = _folder_labels(files, source.names)
    return source


def open_files(files: Files, names: Sequence[str], options: Options) -> FolderSource:
    """Open image files by name: all have to be images of one size, after the transform."""
    if not names:
        raise InputError(
            f"no image files here ({' '.join(SUFFIXES)})",
            where=files.root,
            remedy="give the folder that holds the images",
        )
    skipped: list[str] = []
    good = np.ones(len(names), bool)
    if options.skip_bad:
        good[:] = in_parallel(lambda name: _is_good(files, name, options.transform), names)
        skipped = [name for name, its in zip(names, good, strict=True) if not its]
        names = [name for name, its in zip(names, good, strict=True) if its]
        if not names:
            raise InputError(
                f"none of {len(skipped)} images can be read", where=files.root, remedy="check what they are"
            )
    headers = in_parallel(lambda name: _header(files, name, options.transform), names)
    size = headers[0][0]
    for name, (its, _) in zip(names, headers, strict=True):
        if its != size:
            raise InputError(
                f"{its[0]}×{its[1]} pixels, where {names[0]} has {size[0]}×{size[1]}",
                where=files.root / name,
                remedy="bring all images to one size with resize=32, say",
            )
    gray = options.transform.grayscale or all(its_gray for _, its_gray in headers)
    source = FolderSource(files, names, (len(names), *size, 1 if gray else 3), options.transform)
    if skipped:
        source.skipped, source.kept = tuple(skipped), np.flatnonzero(good)
    return source


def _is_good(files: Files, name: str, transform: Transform) -> bool:
    """Whether an image can be decoded; InputError where it cannot be read at all."""
    try:
        _decoded(files, name, transform, gray=False)
    except BadImageError:
        return False
    return True


def _header(files: Files, name: str, transform: Transform) -> tuple[tuple[int, int], bool]:
    """Size after the transform and whether there is one channel, from the header alone."""
    with opened_image(files, name) as image:
        return transform.size(image.height, image.width, where=files.root / name), image.mode in GRAY_MODES


def _folder_labels(files: Files, names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise InputError(
            "is in no sub-folder, so it has no label",
            where=files.root / loose,
            remedy="move it into the folder of its class, or give labels=FILE",
        )
    paths = [name.split("/")[:-1] for name in names]
    depth = 0
    # Archives often hold one folder, which holds those of the classes.
    while len({path[depth] for path in paths}) == 1 and all(len(path) > depth + 1 for path in paths):
        depth += 1
    of_file = [path[depth] for path in paths]
    labels = sorted(set(of_file))
    number = {name: label for label, name in enumerate(labels)}
    return tuple(labels), np.array([number[name] for name in of_file], np.int64)
