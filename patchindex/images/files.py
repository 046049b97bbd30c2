"""The image files of a folder or a zip archive, listed and opened by relative name."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeAlias

from patchindex.errors import InputError, PatchIndexWarning, warn
from patchindex.images.pictures import BadImageError
from patchindex.images.untrusted import LARGEST_CHUNK, open_file
from patchindex.images.zipped import ZipFile, check_member

__all__ = ["OTHER_SUFFIXES", "SUFFIXES", "Archive", "Files", "Folder", "files_at"]

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Images that are not read. A source warns of them, so that no image is left out without a word.
OTHER_SUFFIXES = (
    *(
        ".heic",
        ".heif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jxr",
        ".psd",
        ".exr",
        ".hdr",
        ".svg",
        ".ico",
        ".pcx",
    ),
    *(
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".raf",
        ".orf",
        ".rw2",
        ".pfm",
        ".qoi",
        ".dcm",
        ".fits",
        ".eps",
    ),
)
LINKS_NAMED = 4
MOST_VISITS = 64  # of one folder, by links; more would multiply the images without end


class Folder:
    """The image files of a folder and its sub-folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Return the relative names of image files, sorted, without hidden files."""
        names = list(self._walk(self.root, "", ()))
        _warn_of_dangling_links(names, self.root)
        return _image_names(names, self.root)

    def _walk(
        self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...], visits: Counter | None = None
    ) -> Iterator[str]:
        """Yield all relative names; links to folders are followed, except to a folder that holds them.

        The folders of classes are often links. A link to a folder above it would never end.
        """
        visits = Counter() if visits is None else visits
        try:
            status = os.stat(folder)
            key = (status.st_dev, status.st_ino)
            if key in above:
                return
            visits[key] += 1
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(
                f"cannot be listed ({error.strerror})", where=folder, remedy="check its permissions"
            ) from error
        if visits[key] > MOST_VISITS:
            raise InputError(
                f"links lead here from more than {MOST_VISITS} places",
                where=folder,
                remedy="remove the links, or give the folder itself",
            )
        for entry in entries:
            if not _is_folder(entry):
                yield prefix + entry.name
            elif not entry.name.startswith("."):
                yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, key), visits)

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; several threads may call this at once."""
        return open_file(f"{self.root}/{name}", kind=BadImageError)  # faster than to join paths


class Single(Folder):
    """One image file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self._name = path.name

    def names(self) -> list[str]:
        """Return the name of the file."""
        return [self._name]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


class Archive:
    """The image files of a zip archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._zip = ZipFile(root)
        # A second entry of the same name replaces the first.
        self._entries = {_plain(info.filename): info for info in self._zip.members()}

    def names(self) -> list[str]:
        """Return the relative names of image files, sorted, without hidden files."""
        names = _image_names(self._entries, self.root)
        for name in names:
            info, where = self._entries[name], self.root / name
            check_member(info, where)
            if info.file_size > LARGEST_CHUNK:
                raise InputError(
                    f"has {info.file_size} bytes, more than {LARGEST_CHUNK}",
                    where=where,
                    remedy="unpack the archive, and give the folder",
                )
        return names

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; several threads may call this at once."""
        return self._zip.open(self._entries[name])


Files: TypeAlias = Folder | Archive


def files_at(path: Path) -> Files:
    """Return the image files of a folder or a zip archive, or an image file itself."""
    if path.is_dir():
        return Folder(path)
    return Single(path) if path.suffix.lower() in SUFFIXES else Archive(path)


def _plain(name: str) -> str:
    r"""Return a name in an archive as a relative path: `./cat/1.png` and `cat\1.png` become `cat/1.png`."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _image_names(names: Iterable[str], root: Path) -> list[str]:
    """Return the names of images that are read, sorted; warn of images in other formats."""
    found, others = [], Counter[str]()
    for name in filter(_is_visible, names):
        suffix = posixpath.splitext(name)[1].lower()
        if suffix in SUFFIXES:
            found.append(name)
        elif suffix in OTHER_SUFFIXES:
            others[suffix] += 1
    if others:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        warn(
            PatchIndexWarning(
                f"images in formats that are not read are left out: {listed}",
                where=root,
                remedy="convert them to PNG, or remove them",
            )
        )
    return sorted(found)


def _warn_of_dangling_links(names: Iterable[str], root: Path) -> None:
    """Warn of links to nothing: they may have been folders of images. Opening an image names its own link."""
    dangling = [
        name
        for name in filter(_is_visible, names)
        if posixpath.splitext(name)[1].lower() not in (*SUFFIXES, *OTHER_SUFFIXES)
        and os.path.islink(root / name)
        and not os.path.exists(root / name)
    ]
    if dangling:
        more = f" and {len(dangling) - LINKS_NAMED} more" if len(dangling) > LINKS_NAMED else ""
        warn(
            PatchIndexWarning(
                f"links to nothing are left out: {', '.join(sorted(dangling)[:LINKS_NAMED])}{more}",
                where=root,
                remedy="mend them, or remove them",
            )
        )


def _is_visible(name: str) -> bool:
    """Return whether a path is not hidden, and not from the `__MACOSX` folder of a Mac."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
