"""Checks of a zarr array and of its files before they are read."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from patchindex.errors import InputError
from patchindex.images.untrusted import (
    GZIP_MAGIC,
    check_chunk,
    check_deflated,
    check_regular,
    check_stored,
    may_fill_memory,
)

__all__ = ["CheckedStore", "check_array", "checked_store"]

# Codecs of format 3, and filters and compressors of format 2, that only handle numbers and unpack no more
# than they announce; `CheckedStore` measures what gzip and zlib unpack.
CODECS = frozenset({"bytes", "transpose", "blosc", "gzip", "zstd", "crc32c", "sharding_indexed"})
COMPRESSORS = frozenset({"blosc", "gzip", "zlib", "zstd", "lz4"})
FILTERS = frozenset({"shuffle", "delta"})
LARGEST_METADATA = 1 << 24  # bytes
PROBES = 1024  # chunks that are looked up to estimate the bytes that are stored
SLACK = 1 << 16  # bytes by which packing may make a chunk longer
LOCAL = "file://"
ZSTD_MAGIC, ZSTD_HEAD = b"\x28\xb5\x2f\xfd", 18
ZLIB_MAGIC = b"\x78"


class CheckedStore(WrapperStore[Any]):
    """A store that refuses files outside its folder, files that are not regular, and chunks too large.

    `most` is the number of bytes of the longest file that can be right: of metadata, and after
    `check_array` also of chunks.
    """

    def __init__(self, store: Any, most: int = LARGEST_METADATA) -> None:
        super().__init__(store)
        self.most = most
        self.root = os.path.realpath(store.root) if isinstance(store, LocalStore) else None
        self._measured: set[str] = set()

    def _with_store(self, store: Any) -> CheckedStore:
        return CheckedStore(store, self.most)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return the bytes of a file, None if there is none."""
        if self.root is not None and not self._has_file(key):
            return None
        found = await self._store.get(key, prototype, byte_range)
        if found is not None:
            self._check_bytes(key, found, whole=byte_range is None)
        return found

    def _has_file(self, key: str) -> bool:
        """Return whether a file is there; refuse a file outside the folder, or that is not regular."""
        path, linked = str(self.root), False
        try:
            for part in key.split("/"):
                path = f"{path}/{part}"
                status = os.lstat(path)
                linked |= stat.S_ISLNK(status.st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if linked:
            real = os.path.realpath(path)
            if os.path.commonpath([real, str(self.root)]) != self.root:
                raise InputError(
                    f"leads out of the folder, to {real}", where=path, remedy="copy the file into the folder"
                )
        if linked or not stat.S_ISREG(status.st_mode):
            if os.path.isdir(path):  # zarr takes it for a file that is missing
                return False
            status = check_regular(Path(path))
        self._check_length(status.st_size, path)
        return True

    def _check_length(self, nbytes: int, where: object) -> None:
        if nbytes > self.most:
            raise InputError(
                f"has {nbytes} bytes, more than a chunk can have ({self.most})",
                where=where,
                remedy="copy it again",
            )

    def _check_bytes(self, key: str, found: Any, *, whole: bool) -> None:
        """Refuse bytes that announce, or hold, more than a chunk may unpack to."""
        where = f"{self.root or self._store}/{key}"
        self._check_length(len(found), where)
        if not whole:
            return
        head = found[:ZSTD_HEAD].to_bytes()
        check_chunk(_announced(head), where)
        is_deflated = head[:2] == GZIP_MAGIC or head[:1] == ZLIB_MAGIC
        if is_deflated and may_fill_memory(len(found)) and key not in self._measured:
            check_deflated(found.to_bytes(), where)
            self._measured.add(key)


def _announced(data: bytes) -> int:
    """Return the number of bytes that a zstd frame announces; 0 for other data.

    Blosc and LZ4 announce at most 2 GiB, and give back no more than they announce.
    """
    if data[:4] != ZSTD_MAGIC or len(data) < 6:
        return 0
    flags = data[4]
    start = 5 + (0 if flags & 0x20 else 1) + (0, 1, 2, 4)[flags & 3]
    width = (1 if flags & 0x20 else 0, 2, 4, 8)[flags >> 6]
    return int.from_bytes(data[start : start + width], "little")


def checked_store(path: str) -> CheckedStore:
    """Return the store of a folder or a URL, read-only."""
    if path.startswith(LOCAL):
        path = path.removeprefix(LOCAL)
    if "://" in path:
        return CheckedStore(FsspecStore.from_url(path, read_only=True))
    return CheckedStore(LocalStore(path, read_only=True))


def check_array(array: zarr.Array, store: CheckedStore, where: object) -> None:
    """Refuse objects, unknown codecs, huge chunks, and arrays of which almost nothing is stored."""
    metadata = array.metadata.to_dict()
    for name in _codecs(metadata):
        raise InputError(
            f"has the codec {name}, which is not read", where=where, remedy="store it again with zstd or gzip"
        )
    dtype = array.dtype
    if dtype.kind not in "uifb":
        raise InputError(f"has dtype {dtype}, expected numbers", where=where, remedy="store numbers")
    stored_together = array.shards or array.chunks
    nbytes = math.prod(stored_together) * dtype.itemsize
    check_chunk(nbytes, where)
    store.most = max(store.most, nbytes + nbytes // 8 + SLACK)
    if store.root is not None:
        announced = math.prod(array.shape) * dtype.itemsize
        check_stored(announced, _stored_bytes(array, Path(store.root)), where)


def _codecs(metadata: dict[str, Any]) -> Any:
    """Yield the names of codecs that are not allowed."""
    if metadata["zarr_format"] == 2:
        compressor = metadata.get("compressor")
        named = [(compressor, COMPRESSORS)] if compressor else []
        named += [(each, FILTERS) for each in metadata.get("filters") or ()]
        for codec, allowed in named:
            name = codec["id"] if isinstance(codec, dict) else codec.codec_id
            if name not in allowed:
                yield name
        return
    todo = list(metadata["codecs"])
    while todo:
        codec = todo.pop()
        if codec["name"] not in CODECS:
            yield codec["name"]
        inside = codec.get("configuration") or {}
        todo += [*inside.get("codecs", ()), *inside.get("index_codecs", ())]


def _stored_bytes(array: zarr.Array, root: Path) -> int:
    """Return an estimate of the bytes that are stored, from chunks that are spread over the array."""
    grid = [-(-n // c) for n, c in zip(array.shape, array.shards or array.chunks, strict=True)]
    chunks = math.prod(grid)
    looked_up = min(chunks, PROBES)
    found = 0
    for i in range(looked_up):
        # The middle of a stratum: the first chunks are there also in a file that announces too many.
        at, rest = [], (2 * i + 1) * chunks // (2 * looked_up)
        for n in reversed(grid):
            at.append(rest % n)
            rest //= n
        key = array.metadata.encode_chunk_key(tuple(reversed(at)))
        try:
            found += os.stat(root / array.path / key).st_size
        except OSError:  # a chunk of one colour is not stored
            continue
    return found * chunks // max(1, looked_up)
