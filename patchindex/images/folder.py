"""A folder of image files, read by Pillow one by one."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from patchindex.errors import InputError, SourceNotFoundError
from patchindex.images.options import Options
from patchindex.images.source import ImageSource
from patchindex.images.transform import Transform

__all__ = ["DESCRIPTION", "FolderSource", "matches", "open"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

DESCRIPTION = f"folder of images ({' '.join(SUFFIXES)})"

GRAY_MODES = frozenset({"1", "L", "LA", "La"})
# Modes of more than 8 bits ("I", "I;16", "F") are not here: Pillow clips them to 255 when it converts.
MODES = GRAY_MODES | {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}


class FolderSource(ImageSource):
    """Image files of one folder, decoded when asked for.

    Made by `open`, which has checked the files' headers.

    Parameters
    ----------
    root : Path
        The folder.
    files : sequence of str
        The files, relative to it.
    shape : tuple of int
        (N, H, W, C) after the transform.
    transform : Transform
        What is done to every image.
    labels, label_names
        As in `ImageSource`.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        shape: tuple[int, int, int, int],
        transform: Transform,
        *,
        labels: Sequence[int] | None = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(str(root), shape, labels=labels, label_names=label_names)
        self._root = root
        self._files = files
        self._transform = transform

    def _read(self, index: slice | np.ndarray) -> np.ndarray:
        files = self._files[index] if isinstance(index, slice) else [self._files[i] for i in index]
        result = np.empty((len(files), *self.shape[1:]), np.uint8)
        for row, file in enumerate(files):
            with _image_file(self._root / file) as image:
                pixels = self._transform.apply(image, "L" if self.shape[3] == 1 else "RGB")
            if pixels.shape != self.shape[1:]:
                raise InputError(
                    "has another size than when the folder was opened",
                    where=self._root / file,
                    remedy="open the folder again",
                )
            result[row] = pixels
        return result


def matches(path: Path) -> bool:
    """Whether the path is a folder."""
    return path.is_dir()


def open(path: Path, options: Options) -> ImageSource:
    """Open a folder of image files, sub-folders included, in the order of their relative paths.

    Files and folders whose names start with a dot are left out. Images have one channel if all of them have,
    or if grayscale is asked for; otherwise they are converted to RGB. Transparency is dropped, the first
    frame of an animation is taken, and EXIF orientation is ignored, as in torchvision. With
    `options.labels == "folders"` an image's label is the number of the first folder on its path, folders
    sorted by name.

    Raises
    ------
    InputError
        No images, one that cannot be read or has more than 8 bits a channel, sizes that differ after the
        transform, or labels from folders where an image is in none.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("cat.png", "dog.png"):
    ...         Image.new("RGB", (32, 24)).save(Path(folder) / name)
    ...     open(Path(folder), Options()).shape
    (2, 24, 32, 3)
    """
    files = sorted(_find(path))
    if not files:
        raise InputError(
            f"no image files in this folder ({' '.join(SUFFIXES)})",
            where=path,
            remedy="give the folder that holds the images",
        )
    size, gray = _header(path / files[0], options.transform)
    for file in files[1:]:
        its, its_gray = _header(path / file, options.transform)
        gray = gray and its_gray
        if its != size:
            raise InputError(
                f"{its[0]}×{its[1]} pixels, where {files[0]} has {size[0]}×{size[1]}",
                where=path / file,
                remedy="bring all images to one size with --resize",
            )
    labels = names = None
    if options.labels == "folders":
        names, labels = _folder_labels(path, files)
    shape = (len(files), *size, 1 if gray or options.transform.grayscale else 3)
    return FolderSource(path, files, shape, options.transform, labels=labels, label_names=names)


def _find(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(
            f"cannot be listed ({error.strerror})", where=error.filename, remedy="check its permissions"
        ) from error

    # Class folders are often links to elsewhere.
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _header(path: Path, transform: Transform) -> tuple[tuple[int, int], bool]:
    """Size after the transform and whether there is one channel, from the header alone."""
    with _image_file(path) as image:
        return transform.size(image.height, image.width, where=path), image.mode in GRAY_MODES


def _folder_labels(root: Path, files: Sequence[str]) -> tuple[list[str], list[int]]:
    loose = next((file for file in files if "/" not in file), None)
    if loose is not None:
        raise InputError(
            "is in no sub-folder, so it has no label",
            where=root / loose,
            remedy="move it into the folder of its class, or give --labels FILE",
        )
    of_file = [file.partition("/")[0] for file in files]
    names = sorted(set(of_file))
    number = {name: label for label, name in enumerate(names)}
    return names, [number[name] for name in of_file]


@contextmanager
def _image_file(path: Path) -> Iterator[Image.Image]:
    """Open an image of 8 bits a channel; whatever Pillow raises in the block becomes an InputError."""
    try:
        with Image.open(path) as image:
            if image.mode not in MODES:
                raise InputError(
                    f"has more than 8 bits a channel, or an unusual colour space (mode {image.mode})",
                    where=path,
                    remedy="convert it to 8-bit RGB or gray",
                )
            yield image
    except InputError:
        raise
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            "is not there any more", where=path, remedy="leave the folder as it is while it is read"
        ) from error
    # Pillow's decoders raise all of these for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(
            "not a readable image (truncated or another kind of file)",
            where=path,
            remedy="repair or remove it",
        ) from error
