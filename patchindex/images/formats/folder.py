"""Image files, alone or in a folder or zip archive, decoded by Pillow on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from pathlib import Path

import numpy as np
from PIL import Image

from patchindex.errors import InputError, Option, printable
from patchindex.images.file_names import FileNames
from patchindex.images.files import SUFFIXES, Files, files_at
from patchindex.images.format import Format, Options
from patchindex.images.pictures import (
    BadImageError,
    PictureSource,
    decoding,
    in_parallel,
    is_gray,
    load_late_exif,
    open_picture,
)
from patchindex.images.source import ImageSource
from patchindex.images.unreadable import plain_name

__all__ = ["FORMAT", "FolderSource"]


class FolderSource(PictureSource):
    """Image files, decoded on demand on all cores.

    The constructor reads the headers of all files; with `options.skip_bad` it decodes every file, and leaves
    files that cannot be decoded out of `names`. Images have one channel if all files have one or if grayscale
    is asked for. Images are turned as their EXIF orientation says. A file of several pictures is refused.
    """

    _turned = True

    def __init__(self, files: Files, names: Sequence[str], options: Options) -> None:
        self._max_pixels = options.max_pixels
        self._files, self._transform, self.names = files, options.transform, tuple(names)
        if not names:
            raise InputError(
                f"no image files here ({' '.join(SUFFIXES)})",
                where=files.root,
                remedy="give the folder that holds the images",
            )
        good = np.ones(len(names), bool)
        if options.skip_bad:
            good[:] = in_parallel(self._can_be_decoded, range(len(names)))
            self.names = tuple(compress(names, good))
        if not self.names:
            raise InputError(
                f"none of {len(names)} images can be read",
                where=files.root,
                remedy="check which kind of files they are",
            )
        headers = in_parallel(self._header, range(len(self.names)))
        size = headers[0][0]
        for i, (other, _) in enumerate(headers):
            self._check_size(i, other, size)
        gray = options.transform.grayscale or all(gray for _, gray in headers)
        super().__init__(printable(files.root), (len(self.names), *size, 1 if gray else 3))
        self.file_names = FileNames.of(self.names)
        if not good.all():
            self.kept, self.skipped = np.flatnonzero(good), tuple(map(printable, compress(names, ~good)))

    def _where(self, i: int) -> str:
        return f"{self._files.root}/{self.names[i]}"

    @contextmanager
    def _picture(self, i: int) -> Iterator[Image.Image]:
        where = self._where(i)
        # Pillow raises errors of any type for damage.
        with (
            decoding(where, errors=(Exception,), max_pixels=self._max_pixels),
            self._files.open(self.names[i]) as file,
            open_picture(file, self.names[i], where, self._max_pixels) as image,
        ):
            yield image

    def _can_be_decoded(self, i: int) -> bool:
        try:
            with self._picture(i) as image:
                image.load()
        except BadImageError:
            return False
        return True

    def _header(self, i: int) -> tuple[tuple[int, int], bool]:
        """Return the size after the transform, and whether the image is gray, without decoding."""
        with self._picture(i) as image:
            load_late_exif(image)
            return self._size(i, image), is_gray(image)


def matches(path: Path) -> bool:
    """Return whether the path is a folder, or a file called .zip or as an image file."""
    return path.is_dir() or path.suffix.lower() in (".zip", *SUFFIXES)


def open_folder(path: Path, options: Options) -> ImageSource:
    """Open all image files in a folder or archive and its sub-folders, sorted by name, except hidden ones.

    A path of an image file stands for this file alone.

    With labels from "folders", the label of an image is the number of the first folder on its path that does
    not hold all images; folders are sorted by name.
    """
    files = files_at(path)
    source = FolderSource(files, files.names(), options)
    if options.labels.kind == "folders":
        source.label_names, source.labels = _folder_labels(files, source.names)
    return source


FORMAT = Format(
    f"image file, or folder or .zip of image files ({' '.join(SUFFIXES)})",
    matches,
    open_folder,
    features=("folders", "pictures", "transform"),
    matches_anything=True,  # every folder
)


def _folder_labels(files: Files, names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise InputError(
            "is in no sub-folder, so it has no label",
            where=files.root / loose,
            remedy=["move it into the folder of its class, or give ", Option("labels", "FILE")],
        )
    paths = [name.split("/")[:-1] for name in names]
    depth = 0
    # Archives often hold one folder, which holds the folders of the classes.
    while len({path[depth] for path in paths}) == 1 and all(len(path) > depth + 1 for path in paths):
        depth += 1
    classes, labels = np.unique([plain_name(path[depth]) for path in paths], return_inverse=True)
    return tuple(classes.tolist()), labels
