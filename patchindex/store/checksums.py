"""Checksums of a store's files, and fingerprints of contents.

A *checksummed* file is JSON with the crc32c of its content, in one canonical form: any changed byte shows.
`manifest.json` of a folder is checksummed, and lists the size and the crc32c of every other file in the
folder. Files that change after the manifest was written are checksummed themselves: the operating curve of a
scale, and the list of scales.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

from patchindex.errors import PatchIndexError, StoreError
from patchindex.regular_files import open_regular
from patchindex.store.arrays import JSON_BYTES, REMEDY, open_file, parse_json, read_file
from patchindex.store.atomic import atomic_write

__all__ = [
    "CHECKSUM_OF_CHECKED",
    "CURVE",
    "IMAGE_BLOCK_BYTES",
    "MANIFEST",
    "REMEDY",
    "SCALES",
    "bytes_of",
    "check_files",
    "check_small_files",
    "checksum_of_file",
    "crc32c",
    "fingerprint",
    "image_block",
    "is_stray",
    "problem_of_file",
    "read_checksummed",
    "read_manifest",
    "write_checksummed",
    "write_manifest",
    "write_scales",
]

MANIFEST = "manifest.json"
CURVE = "operating_curve.json"
SCALES = "scales.json"
CHECKSUMMED = (MANIFEST, CURVE, SCALES)
# Large arrays are one raw file each. Sampling checks the blocks that it reads, not the whole file.
LARGE = ("images/c/", "faiss/c/")
PARTS = "scales"  # the folder whose sub-folders have their own manifests
IMAGE_BLOCK_BYTES = 1 << 20  # images that share a checksum
READ_BYTES = 8 << 20
LONGEST_NAME = 200  # bytes
# The crc32c of any bytes that their own crc32c follows, little endian, as in raw arrays and shards.
CHECKSUM_OF_CHECKED = "48674bc7"
# Files that operating systems put into folders.
STRAY = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")
MISMATCH = "is damaged (checksum mismatch)"


def crc32c(data: Any, before: int = 0) -> int:
    """Return the crc32c of bytes or of an array's bytes; `before` is the crc32c of the bytes in front."""
    # `bytes(array)` goes through the buffer protocol, and is slower than `tobytes`.
    return int(google_crc32c.extend(before, data if isinstance(data, bytes) else data.tobytes()))


def fingerprint(content: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of bytes, of an array's bytes, or of JSON data."""
    if isinstance(content, np.ndarray):
        content = np.ascontiguousarray(content).tobytes()
    elif not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def write_checksummed(path: Path, content: Any) -> None:
    """Write JSON data with its checksum, atomically; refuse more bytes than can be read again."""
    data = _with_checksum(content)
    if len(data) > JSON_BYTES:
        what = f"would hold {len(data):,} bytes, over the limit of {JSON_BYTES:,}"
        raise PatchIndexError(what, where=path, remedy="store fewer or shorter values")
    with atomic_write(path) as file:
        file.write(data)


def write_scales(store: Path, scales: Iterable[int]) -> None:
    """Write the list of a store's scales."""
    write_checksummed(store / SCALES, sorted(scales))


def _with_checksum(content: Any) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f'{{"crc32c":"{crc32c(text.encode()):08x}","content":{text}}}\n'.encode()


def read_checksummed(path: Path) -> Any:
    """Read the content of a checksummed file; raise StoreError when it is missing or damaged."""
    data = read_file(path.parent, path.name)
    try:
        content = parse_json(data)["content"]
        intact = _with_checksum(content) == data
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise StoreError(MISMATCH, where=path, remedy=REMEDY)
    return content


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder; sub-folders of `scales/` have their own."""
    entries = {}
    for name in sorted(_files(folder)):
        path = folder / name
        checksum = CHECKSUM_OF_CHECKED if name.startswith(LARGE) else checksum_of_file(path)
        entries[name] = [path.stat().st_size, checksum]
    write_checksummed(folder / MANIFEST, entries)


def read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Return the size and the checksum of each file of a folder, by the file's name.

    Refuse names that lead out of the folder: copies of remote stores are written under these names.
    """
    path = folder / MANIFEST
    entries = read_checksummed(path)
    if not isinstance(entries, dict):
        raise StoreError("is not a manifest", where=path, remedy=REMEDY)
    for name, entry in entries.items():
        # A backslash and a colon lead out of the folder on Windows.
        outside = "\\" in name or ":" in name or not {"", ".", ".."}.isdisjoint(name.split("/"))
        if outside or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
            raise StoreError(f"has an invalid file name {name!r}", where=path, remedy=REMEDY)
        match entry:
            case [int(size), str()] if 0 <= size < 1 << 63:
                pass
            case _:
                raise StoreError(f"has no size and checksum of {name!r}", where=path, remedy=REMEDY)
    return {name: (size, checksum) for name, (size, checksum) in entries.items()}


def bytes_of(folder: Path) -> int:
    """Return the bytes of the files in a folder's manifest, and of the files with their own checksum."""
    own = (folder / name for name in CHECKSUMMED)
    listed = sum(size for size, _ in read_manifest(folder).values())
    return listed + sum(path.stat().st_size for path in own if path.exists())


def _files(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        at = Path(root).relative_to(folder)
        if at == Path(PARTS):
            folders.clear()
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for file in files + links:
            if (at != Path() or file.removesuffix(".tmp") not in CHECKSUMMED) and not is_stray(file):
                yield (at / file).as_posix()


def is_stray(name: str) -> bool:
    """Return whether a file is of the operating system, and not of the store."""
    return STRAY.fullmatch(name) is not None


def checksum_of_file(path: Path) -> str:
    """Return the crc32c of a regular file, in hexadecimal."""
    with open_regular(path) as file:
        return _checksum_of(file)


def _checksum_of(file: BinaryIO) -> str:
    checksum = 0
    while piece := file.read(READ_BYTES):
        checksum = crc32c(piece, checksum)
    return f"{checksum:08x}"


def image_block(size: tuple[int, int], channels: int) -> int:
    """Return the number of images that share a checksum."""
    return max(1, IMAGE_BLOCK_BYTES // (size[0] * size[1] * channels))


def check_small_files(folder: Path) -> None:
    """Refuse a folder with a missing or damaged file; of large arrays, compare only the size."""
    for name, (size, checksum) in read_manifest(folder).items():
        problem = problem_of_file(folder, name, size, None if name.startswith(LARGE) else checksum)
        if problem is not None:
            raise StoreError(problem, where=folder / name, remedy=REMEDY)


def problem_of_file(folder: Path, name: str, size: int, checksum: str | None) -> str | None:
    """Compare a file with its size and, if given, its checksum; return the problem or None."""
    try:
        with open_file(folder, name) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                return f"holds {found} bytes, not {size}"
            intact = checksum is None or _checksum_of(file) == checksum
    except StoreError as error:
        return error.what
    return None if intact else MISMATCH


def check_files(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Compare every file of a folder with its manifest; yield (file name, problem or None)."""
    try:
        expected = read_manifest(folder)
    except StoreError as error:
        yield MANIFEST, error.what
        return
    yield MANIFEST, None
    found = set(_files(folder))
    for name, (size, checksum) in expected.items():
        yield name, problem_of_file(folder, name, size, checksum)
    for name in sorted(found - set(expected)):
        yield name, "does not belong to the store"
