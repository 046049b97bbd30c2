"""Stores on object storage: the images and the scales that are used are copied here, and kept.

What `fsspec` has a protocol for can hold a store: `s3://bucket/faces.zarr`, `gs://...`, `https://...` where
it can be listed. Searching takes memory maps, so parts are copied whole: what is not of a scale when a store
is opened, and each scale when it is first used. Every file is compared with the manifest of its part as it
arrives.

cache/<hash of the URL>-faces.zarr/
  store-<hash of its manifest>/   what is not of a scale; which scales there are is compared at each opening
  k007-<hash of its manifest>/    a scale; its operating curve is compared at each opening
  k007.last                       name of the newest copy, for when the network is away
  lock

A part that has become another has another manifest, and so a copy beside the old one: who reads that goes on.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from patchindex.errors import InputError, PatchIndexError, SourceNotFoundError, StoreError
from patchindex.runtime import cache_folder
from patchindex.store.checksums import (
    CURVE,
    MANIFEST,
    SCALES,
    check_small_files,
    damage,
    manifest_of,
    read_checksummed,
)

__all__ = ["ATTRIBUTES", "Remote", "is_url"]

ATTRIBUTES = "zarr.json"
AGAIN = "copy the store there again"


def is_url(path: object) -> bool:
    """Whether a path is a URL.

    Examples
    --------
    >>> is_url("s3://bucket/faces.zarr"), is_url("faces.zarr")
    (True, False)
    """
    return isinstance(path, str) and "://" in path


class _UnreachableError(InputError):
    """A store that cannot be asked for anything now; a copy of it does."""


class Remote:
    """A store at a URL. What was copied once by an object stays as it is for that object.

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
        except (ImportError, TypeError, ValueError) as error:
            raise InputError(
                f"cannot be opened ({error})", where=url, remedy="install the package, such as s3fs for s3://"
            ) from error
        name = self._root.rpartition("/")[2] or "store"
        self._home = cache_folder() / f"{_hash(self.url.encode())}-{name}"
        self._folders: dict[str, Path] = {}
        self._away: _UnreachableError | None = None  # why copies are used as they are

    def is_store(self) -> bool:
        """Whether there is a store, and not something else.

        Raises
        ------
        InputError
            When that cannot be found out, and there is no copy.
        """
        try:
            return self._read("", MANIFEST) is not None
        except _UnreachableError as error:
            self._use_copy("", error)
            return True

    def fetch(self, part: str = "") -> Path:
        """Return the folder of a part's copy: of a scale's group, or of all that is of none.

        It is copied where it is not here, is another there, or is damaged here. Where the network is away,
        the last copy is taken as it is, with a warning.

        Raises
        ------
        SourceNotFoundError
            When there is no store.
        StoreError
            When a file is missing there or has another checksum.
        InputError
            When it cannot be read there, and there is no copy; or the cache cannot be written to.
        PatchIndexError
            When copying fails.
        """
        if part not in self._folders:
            self._folders[part] = self._newest(part)
        return self._folders[part]

    def facts(self, part: str, folder: Path) -> Path:
        """Copy what a part says of itself, but nothing that it holds, into an empty folder.

        Returns
        -------
        Path
            The folder; where the network is away, that of the part's copy.

        Raises
        ------
        PatchIndexError
            As `fetch` does.
        """
        try:
            for name in (MANIFEST, ATTRIBUTES, CURVE):
                if (content := self._read(part, name)) is not None:
                    (folder / name).write_bytes(content)
        except _UnreachableError:
            return self.fetch(part)
        return folder

    def scales(self) -> list[int]:
        """Return the scales that the store has, ascending."""
        return sorted(read_checksummed(self.fetch() / SCALES))

    def _ask(self, call: Callable[[str], Any], name: str) -> Any:
        """Return what a call says of a path there; None where there is nothing."""
        if self._away is not None:
            raise self._away
        try:
            return call(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:  # each protocol has its own, for no permission or no network
            if getattr(error, "status", None) == 403:  # as buckets that are not listed say of what is missing
                return None
            kind = InputError if isinstance(error, PermissionError) else _UnreachableError
            raise kind(
                f"cannot be read ({_line(error)})",
                where=self.url,
                remedy="check the URL, the network and the credentials",
            ) from error

    def _read(self, part: str, name: str) -> bytes | None:
        content: bytes | None = self._ask(self._files.cat_file, f"{part}/{name}".lstrip("/"))
        return content

    def _newest(self, part: str) -> Path:
        try:
            manifest = self._read(part, MANIFEST)
            later = CURVE if part else SCALES  # what a part is given after its manifest
            content = self._read(part, later)
        except _UnreachableError as error:
            return self._use_copy(part, error)
        if manifest is None and part:
            raise StoreError("is missing", where=f"{self.url}/{part}/{MANIFEST}", remedy=AGAIN)
        if manifest is None:
            raise SourceNotFoundError(
                "no such store", where=self.url, remedy="check the URL, or build it first"
            )
        last = self._last(part)
        folder = last.with_name(f"{last.stem}-{_hash(manifest)}")
        small = {folder / later: content, last: folder.name.encode()}

        def old() -> bool:
            return not _whole(folder) or any(_content(path) != new for path, new in small.items())

        if old():  # else nothing is written: a cache may be read-only
            with self._alone():
                if not _whole(folder):
                    self._copy(part, manifest, folder)
                for path, new in small.items():
                    _put(path, new)
        return folder

    def _last(self, part: str) -> Path:
        """Return the file with the name of a part's newest copy."""
        return self._home / f"{part.rpartition('/')[2] or 'store'}.last"

    def _use_copy(self, part: str, error: _UnreachableError) -> Path:
        """Return the newest copy of a part, where there is no asking; from then on nothing else is asked."""
        name = _content(self._last(part))
        folder = self._home / (name or b"").decode()
        if not name or not folder.is_dir():
            raise error
        if self._away is None:
            self._away = error
            warnings.warn(f"{self.url}: {error.what}; the copy in {self._home} is used", stacklevel=2)
        return folder

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from the copies of this store."""
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            with FileLock(self._home / "lock"):
                yield
        except PatchIndexError:
            raise
        except OSError as error:
            raise InputError(
                f"cannot be written to ({_line(error)})",
                where=self._home,
                remedy="name another folder as PATCHINDEX_CACHE",
            ) from error

    def _copy(self, part: str, manifest: bytes, folder: Path) -> None:
        root, url = (f"{where}/{part}".rstrip("/") for where in (self._root, self.url))
        arriving = folder.with_name(folder.name + ".arriving")
        try:
            shutil.rmtree(arriving, ignore_errors=True)
            arriving.mkdir()
            (arriving / MANIFEST).write_bytes(manifest)
            for name in manifest_of(arriving):
                (arriving / name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{root}/{name}", str(arriving / name))
            wrong = next(((name, what) for name, what in damage(arriving) if what is not None), None)
            if wrong is None:
                shutil.rmtree(folder, ignore_errors=True)  # what was damaged
                arriving.rename(folder)
        except StoreError as error:  # the manifest's
            raise StoreError(error.what, where=f"{url}/{MANIFEST}", remedy=AGAIN) from error
        except FileNotFoundError as error:
            raise StoreError("a file is missing", where=error.filename or url, remedy=AGAIN) from error
        except Exception as error:  # of the disk; and each protocol has its own
            raise PatchIndexError(
                f"cannot be copied ({_line(error)})",
                where=self.url,
                remedy=f"check the network, the credentials and the space in {self._home}",
            ) from error
        if wrong is not None:
            raise StoreError(wrong[1], where=f"{url}/{wrong[0]}", remedy=AGAIN)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _whole(folder: Path) -> bool:
    """Whether a copy is whole, as far as it can be seen without reading images and lists."""
    try:
        check_small_files(folder)
        files = manifest_of(folder).items()
    except (StoreError, OSError):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, (size, _) in files
    )


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _put(path: Path, content: bytes | None) -> None:
    """Write a small file at once, or remove it."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    arriving = path.with_name(path.name + ".arriving")
    arriving.write_bytes(content)
    arriving.replace(path)
