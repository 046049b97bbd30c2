"""Stores on object storage: the images and the scales that are used are copied here, and kept.

What `fsspec` has a protocol for can hold a store: `s3://bucket/faces.zarr`, `gs://...`, `https://...` where
it can be listed. Searching takes memory maps, so parts are copied whole: what is not of a scale when a store
is opened, and each scale when it is first used. Copies are called by the checksum of the store's manifest: a
store that is another is copied anew. Every file is compared with the manifest of its part as it arrives.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from patchindex.errors import InputError, SourceNotFoundError, StoreError
from patchindex.index.checksums import MANIFEST, SEALED, damage, read_sealed

__all__ = ["Remote", "cache_folder", "is_url"]


def is_url(path: object) -> bool:
    """Whether a path is a URL.

    Examples
    --------
    >>> is_url("s3://bucket/faces.zarr"), is_url("faces.zarr")
    (True, False)
    """
    return isinstance(path, str) and "://" in path


def cache_folder() -> Path:
    """Return where copies are kept: `PATCHINDEX_CACHE`, or `patchindex` in the user's folder of caches."""
    own = os.environ.get("PATCHINDEX_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchindex"


class Remote:
    """A store at a URL.

    Parameters
    ----------
    url : str
    options : dict, optional
        Of `fsspec`: `{"key": ..., "secret": ..., "client_kwargs": {"endpoint_url": ...}}`, say. By default
        what the environment tells.

    Raises
    ------
    InputError
        When the protocol is unknown or its package is not installed.
    SourceNotFoundError
        When there is no store.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url, **(options or {}))
        except (ImportError, ValueError) as error:
            raise InputError(
                f"cannot be opened ({error})", where=url, remedy="install the package, such as s3fs for s3://"
            ) from error

    def is_store(self) -> bool:
        """Whether there is a store, and not something else."""
        return bool(self._files.exists(f"{self._root}/{MANIFEST}"))

    @cached_property
    def folder(self) -> Path:
        """The folder of the copy."""
        try:
            manifest = self._files.cat_file(f"{self._root}/{MANIFEST}")
        except FileNotFoundError:
            raise SourceNotFoundError(
                "no such store", where=self.url, remedy="check the URL, or build it first"
            ) from None
        except Exception as error:  # each protocol has its own, for no permission or no network
            raise InputError(
                f"cannot be read ({type(error).__name__}: {error})",
                where=self.url,
                remedy="check the URL, the network and the credentials",
            ) from error
        name = self._root.rpartition("/")[2] or "store"
        key = hashlib.sha256(self.url.encode() + b"\0" + manifest).hexdigest()[:16]
        return cache_folder() / f"{key}-{name}"

    def fetch(self, part: str = "") -> Path:
        """Copy a part, where it is not here yet: a scale's group, or all that is of none; return its folder.

        Raises
        ------
        StoreError
            When a file is missing or has another checksum.
        """
        folder = self.folder / part
        if (folder / MANIFEST).exists():
            return folder
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(self.folder.name + ".lock")):
            if not (folder / MANIFEST).exists():
                self._copy(part, folder)
        return folder

    def _copy(self, part: str, folder: Path) -> None:
        root = f"{self._root}/{part}".rstrip("/")
        arriving = self.folder.with_name(self.folder.name + ".arriving")
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir()
        try:
            self._files.get_file(f"{root}/{MANIFEST}", str(arriving / MANIFEST))
            names = list(read_sealed(arriving / MANIFEST))
            names += [name for name in SEALED if name != MANIFEST and self._files.exists(f"{root}/{name}")]
            for name in names:
                (arriving / name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{root}/{name}", str(arriving / name))
            wrong = next(((name, what) for name, what in damage(arriving) if what is not None), None)
        except FileNotFoundError as error:
            raise StoreError(
                "a file is missing", where=error.filename or root, remedy="copy the store there again"
            ) from error
        if wrong is not None:
            raise StoreError(wrong[1], where=f"{root}/{wrong[0]}", remedy="copy the store there again")
        if part:
            folder.parent.mkdir(exist_ok=True)
        arriving.rename(folder)

    def scales(self) -> list[int]:
        """Return the scales that the store has, ascending."""
        try:
            found = self._files.ls(f"{self._root}/scales", detail=False)
        except FileNotFoundError:
            return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
        return sorted(int(name[1:]) for name in names if name.startswith("k") and name[1:].isdigit())
