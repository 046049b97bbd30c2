"""The image files of a folder or a zip archive, listed and opened by relative name."""

from __future__ import annotations

import os
import posixpath
import zipfile
from pathlib import Path
from typing import IO, TypeAlias

from patchindex.errors import InputError
from patchindex.images.unreadable import unreadable

__all__ = ["SUFFIXES", "Archive", "Files", "Folder", "files_at"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class Folder:
    """The image files of a folder and its sub-folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Return the relative names of image files, sorted, without hidden files."""

        def refuse(error: OSError) -> None:
            raise InputError(
                f"cannot be listed ({error.strerror})", where=error.filename, remedy="check its permissions"
            ) from error

        names = []
        # Links are followed, because the folders of classes are often links.
        for folder, folders, files in os.walk(self.root, followlinks=True, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names += [(Path(folder) / file).relative_to(self.root).as_posix() for file in files]
        return sorted(filter(_is_image, names))

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; several threads may call this at once."""
        return (self.root / name).open("rb")


class Archive:
    """The image files of a zip archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self._zip = zipfile.ZipFile(root)
        except (OSError, zipfile.BadZipFile) as error:
            raise unreadable(
                error, "not a readable zip archive", where=root, remedy="download it again, or unpack it"
            ) from error
        # A second entry of the same name replaces the first.
        self._entries = {_plain(info.filename): info for info in self._zip.infolist() if not info.is_dir()}

    def names(self) -> list[str]:
        """Return the relative names of image files, sorted, without hidden files."""
        return sorted(filter(_is_image, self._entries))

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; several threads may call this at once."""
        return self._zip.open(self._entries[name])


Files: TypeAlias = Folder | Archive


def files_at(path: Path) -> Files:
    """Return the image files of a folder or a zip archive."""
    return Folder(path) if path.is_dir() else Archive(path)


def _plain(name: str) -> str:
    r"""Return a name in an archive as a relative path: `./cat/1.png` and `cat\1.png` become `cat/1.png`."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _is_image(name: str) -> bool:
    """Return whether a path is an image that is not hidden, and not from the `__MACOSX` folder of a Mac."""
    parts = name.split("/")
    return name.lower().endswith(SUFFIXES) and not any(p.startswith(".") or p == "__MACOSX" for p in parts)
