"""Stores on object storage: the parts that are used are copied to a local cache.

A store can be at any URL that `fsspec` has a protocol for: `s3://bucket/faces.zarr`, `gs://...`, or
`https://...` when the server lists folders. Searching needs memory maps, so each part is copied whole: the
images when the store is opened, and each scale at its first use. Every file is compared with the manifest of
its part on arrival.

cache/<hash of the URL>-faces.zarr/
  store-<fingerprint of its manifest>/   everything but the scales; `scales.json` is refreshed at each opening
  k007-<fingerprint of its manifest>/    one scale; its operating curve is refreshed at each opening
  k007.last                              name of the newest copy, for use without a network
  lock

A part that changes gets another manifest, and so a new copy beside the old one: processes that read the old
copy are not disturbed.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from patchindex.errors import (
    InputError,
    PatchIndexError,
    PatchIndexWarning,
    SourceNotFoundError,
    StoreError,
    warn,
)
from patchindex.runtime import cache_folder
from patchindex.store.atomic import atomic_write, publish
from patchindex.store.checksums import (
    CURVE,
    MANIFEST,
    SCALES,
    check_small_files,
    fingerprint,
    problem_of_file,
    read_manifest,
)

__all__ = ["ATTRIBUTES", "Remote", "is_url"]

log = logging.getLogger(__name__)

ATTRIBUTES = "zarr.json"
COPY_AGAIN = "copy the store there again"
COPY_BYTES = 8 << 20
ARRIVING = ".arriving"


def is_url(path: object) -> bool:
    """Return whether a path is a URL."""
    return isinstance(path, str) and "://" in path


class _UnreachableError(InputError):
    """The store cannot be read now; a copy of it may be used instead."""


class Remote:
    """A store at a URL. A part that this object has copied stays the same for this object.

    `options` are options of `fsspec`; by default the options of the environment.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        import fsspec

        self.url, self.options = url.rstrip("/"), options
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url, **(options or {}))
        except (ImportError, TypeError, ValueError) as error:
            raise InputError(
                f"cannot be opened ({error})",
                where=url,
                remedy="install the package for the protocol, such as s3fs for s3://",
            ) from error
        name = self._root.rpartition("/")[2] or "store"
        self._home = cache_folder() / f"{fingerprint(self.url.encode())}-{name}"
        self._folders: dict[str, Path] = {}
        self._mending = threading.Lock()
        self._mended: set[Path] = set()
        self._asked: set[tuple[Path, int]] = set()  # files and the threads that found them damaged
        self._offline: _UnreachableError | None = None  # set when copies are used as they are

    def is_store(self) -> bool:
        """Return whether there is a store at the URL; refuse a URL that cannot be read and has no copy."""
        try:
            return self._read("", MANIFEST) is not None
        except _UnreachableError as error:
            self._use_copy("", error)
            return True

    def fetch(self, part: str = "") -> Path:
        """Return the local folder of a part: of a scale's group, or of everything but the scales.

        The part is copied when the cache has no copy, another version, or a damaged copy. Without a network
        the newest copy is used as it is, with a warning.
        """
        if part not in self._folders:
            self._folders[part] = self._newest(part)
        return self._folders[part]

    def mend(self, file: Path) -> bool:
        """Fetch a damaged file of a copy again, and return True; False the second time, or without a network.

        The new bytes are written over the old, so that memory maps of the file see them. When several threads
        find the same damage, the file is fetched once, and all of them wait; each thread may ask once.

        Raises
        ------
        StoreError
            When the file at the URL is damaged as well.
        """
        asking = file, threading.get_ident()
        with self._mending:
            if asking in self._asked or self._offline is not None:
                return False
            self._asked.add(asking)
            if file not in self._mended:
                self._fetch_again(file)
                self._mended.add(file)
        return True

    def _fetch_again(self, file: Path) -> None:
        part, folder = next(each for each in self._folders.items() if file.is_relative_to(each[1]))
        arriving, name = file.with_name(file.name + ARRIVING), file.relative_to(folder).as_posix()
        with self._locked():
            try:
                self._get(part, name, arriving)
                size, checksum = read_manifest(folder)[name]
                problem = problem_of_file(folder, f"{name}{ARRIVING}", size, checksum)
                if problem is None:
                    with arriving.open("rb") as new, file.open("r+b") as old:
                        shutil.copyfileobj(new, old, COPY_BYTES)
            finally:
                arriving.unlink(missing_ok=True)
        if problem is not None:
            raise self._damaged(part, name, problem)

    def fetch_attributes(self, part: str, folder: Path) -> Path:
        """Copy the attributes, manifest and operating curve of a part into an empty folder, and return it.

        Without a network, return the folder of the part's copy.
        """
        try:
            for name in (MANIFEST, ATTRIBUTES, CURVE):
                if (content := self._read(part, name)) is not None:
                    (folder / name).write_bytes(content)
        except _UnreachableError:
            return self.fetch(part)
        return folder

    def _read(self, part: str, name: str) -> bytes | None:
        """Return the content of a file; None when the file does not exist."""
        if self._offline is not None:
            raise self._offline
        try:
            return bytes(self._files.cat_file("/".join(filter(None, (self._root, part, name)))))
        except FileNotFoundError:
            return None
        except Exception as error:  # each protocol raises its own errors
            # Buckets that may not be listed answer 403 for a file that does not exist.
            if getattr(error, "status", None) == 403:
                return None
            kind = InputError if isinstance(error, PermissionError) else _UnreachableError
            raise kind(
                f"cannot be read ({_one_line(error)})",
                where=self.url,
                remedy="check the URL, the network and the credentials",
            ) from error

    def _newest(self, part: str) -> Path:
        try:
            manifest = self._read(part, MANIFEST)
            refreshed = CURVE if part else SCALES  # written after the manifest
            content = self._read(part, refreshed)
        except _UnreachableError as error:
            return self._use_copy(part, error)
        if manifest is None and part:
            raise StoreError("is missing", where=f"{self.url}/{part}/{MANIFEST}", remedy=COPY_AGAIN)
        if manifest is None:
            raise SourceNotFoundError(
                "no such store", where=self.url, remedy="check the URL, or build the store first"
            )
        last = self._last(part)
        folder = last.with_name(f"{last.stem}-{fingerprint(manifest)}")
        small = {folder / refreshed: content, last: folder.name.encode()}

        def outdated() -> bool:
            return not _is_intact(folder) or any(_content(path) != new for path, new in small.items())

        if outdated():  # a cache that is up to date may be read-only
            with self._locked():
                if not _is_intact(folder):
                    self._copy(part, manifest, folder)
                for path, new in small.items():
                    _write(path, new)
        return folder

    def _last(self, part: str) -> Path:
        return self._home / f"{part.rpartition('/')[2] or 'store'}.last"

    def _use_copy(self, part: str, error: _UnreachableError) -> Path:
        """Return the newest copy of a part, and stay offline from now on."""
        name = _content(self._last(part))
        folder = self._home / (name or b"").decode()
        if not name or not folder.is_dir():
            raise error
        if self._offline is None:
            self._offline = error
            warning = PatchIndexWarning(
                f"{error.what}: the copy in {self._home} is used as it is",
                where=self.url,
                remedy=error.remedy,
            )
            warn(warning)
        return folder

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            with FileLock(self._home / "lock"):
                yield
        except PatchIndexError:
            raise
        except OSError as error:
            raise InputError(
                f"cannot be written to ({_one_line(error)})",
                where=self._home,
                remedy="set PATCHINDEX_CACHE to another folder",
            ) from error

    def _copy(self, part: str, manifest: bytes, folder: Path) -> None:
        """Copy a part; a file that arrives damaged is fetched once more."""
        log.info("copying %s to %s", "/".join(filter(None, (self.url, part))), folder)
        arriving = folder.with_name(folder.name + ARRIVING)
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir()
        (arriving / MANIFEST).write_bytes(manifest)
        try:
            entries = read_manifest(arriving)
        except StoreError as error:
            raise self._damaged(part, MANIFEST, error.what) from error
        for name, (size, checksum) in entries.items():
            file = arriving / name
            file.parent.mkdir(parents=True, exist_ok=True)
            problem = None
            for _ in range(2):
                self._get(part, name, file)
                if (problem := problem_of_file(arriving, name, size, checksum)) is None:
                    break
            else:
                raise self._damaged(part, name, str(problem))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged copy
        publish(arriving, folder)

    def _damaged(self, part: str, name: str, what: str) -> StoreError:
        where = "/".join(filter(None, (self.url, part, name)))
        return StoreError(what, where=where, remedy=COPY_AGAIN)

    def _get(self, part: str, name: str, file: Path) -> None:
        """Copy a file of a part."""
        source = "/".join(filter(None, (self._root, part, name)))
        try:
            self._files.get_file(source, str(file))
        except FileNotFoundError as error:
            raise StoreError(
                "a file is missing", where=error.filename or source, remedy=COPY_AGAIN
            ) from error
        except Exception as error:  # of the disk, or of the protocol
            raise PatchIndexError(
                f"cannot be copied ({_one_line(error)})",
                where=self.url,
                remedy=f"check the network, the credentials and the free space in {self._home}",
            ) from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _is_intact(folder: Path) -> bool:
    try:
        check_small_files(folder)
    except (StoreError, OSError):
        return False
    return True


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _write(path: Path, content: bytes | None) -> None:
    """Write a small file, or remove it when there is no content."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_write(path) as file:
            file.write(content)
