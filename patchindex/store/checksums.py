"""Checksums of a store: crc32c of every file in sealed manifests, and of the pieces that sampling reads.

A *sealed* file is JSON with the checksum of its content, written in one way only, so that any other byte in
it shows. The manifest of a folder is one: it lists the size and checksum of every other file. What changes
later is sealed by itself: operating curves, and the list of scales.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c

from patchindex.errors import StoreError

__all__ = [
    "CURVE",
    "IMAGE_BLOCK_BYTES",
    "MANIFEST",
    "REMEDY",
    "SCALES",
    "check_small_files",
    "crc32c",
    "damage",
    "image_block",
    "list_scales",
    "manifest_of",
    "read_checksummed",
    "write_checksummed",
    "write_manifest",
]

MANIFEST = "manifest.json"
CURVE = "operating_curve.json"
SCALES = "scales.json"  # that a store has been given
CHECKSUMMED = (MANIFEST, CURVE, SCALES)
# Arrays that are one raw file, which ends in the checksum of the rest; sampling checks pieces of them.
LARGE = ("images/c/", "faiss/c/")
PARTS = "scales"  # sub-folders of which each has its own manifest
IMAGE_BLOCK_BYTES = 1 << 20  # of images with a checksum of their own
READ_BYTES = 8 << 20
REMEDY = "build the store again, or copy it again from where it is whole"


def crc32c(data: Any, before: int = 0) -> int:
    """Return the crc32c of bytes (or of an array's), behind others of which it was `before`.

    Examples
    --------
    >>> crc32c(b"123456789") == crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
    True
    """
    # An array's own `tobytes` is faster than `bytes`, which goes through the buffer protocol.
    return int(google_crc32c.extend(before, data if isinstance(data, bytes) else data.tobytes()))


def write_checksummed(path: Path, content: Any) -> None:
    """Write JSON with its checksum, in place of what is there, at once."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(_with_checksum(content))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def list_scales(folder: Path, scales: Iterable[int]) -> None:
    """Write down which scales a store has been given."""
    write_checksummed(folder / SCALES, sorted(scales))


def _with_checksum(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    checksum = crc32c(text.encode())
    return f'{{"crc32c":"{checksum:08x}","content":{text}}}\n'


def read_checksummed(path: Path) -> Any:
    """Read what `write_checksummed` wrote.

    Raises
    ------
    StoreError
        When it is not there, or not as it was written.
    """
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)["content"]
        whole = _with_checksum(content) == text
    except FileNotFoundError:
        raise StoreError("is missing", where=path, remedy=REMEDY) from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise StoreError("is damaged: its checksum is another", where=path, remedy=REMEDY)
    return content


def write_manifest(folder: Path) -> None:
    """Write down size and checksum of every file of a folder, but for parts with manifests of their own."""
    found = {}
    for name in sorted(_files(folder)):
        path = folder / name
        found[name] = [
            path.stat().st_size,
            _raw_checksum(path) if name.startswith(LARGE) else _checksum(path),
        ]
    write_checksummed(folder / MANIFEST, found)


def manifest_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Read which files a folder has: their names, with size and checksum.

    A manifest may come from somewhere else, and files are written under its names: none leads elsewhere.

    Raises
    ------
    StoreError
        When it is missing, damaged or no manifest, or a name is none of a file below the folder.
    """
    path = folder / MANIFEST
    found = read_checksummed(path)
    if not isinstance(found, dict):
        raise StoreError("is no manifest", where=path, remedy=REMEDY)
    for name, entry in found.items():
        # A backslash and a colon lead out on Windows.
        if "\\" in name or ":" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise StoreError(f"names {name!r}, which is no file of a store", where=path, remedy=REMEDY)
        match entry:
            case [int(), str()]:
                pass
            case _:
                raise StoreError(f"has no size and checksum of {name!r}", where=path, remedy=REMEDY)
    return {name: (size, checksum) for name, (size, checksum) in found.items()}


def _files(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        at = Path(root).relative_to(folder)
        if at == Path(PARTS):
            folders.clear()
        for file in files:
            if at != Path() or file.removesuffix(".tmp") not in CHECKSUMMED:
                yield (at / file).as_posix()


def _checksum(path: Path) -> str:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            found = crc32c(piece, found)
    return f"{found:08x}"


def _raw_checksum(path: Path) -> str:
    """Return the checksum of a whole raw file from that at its end, which was taken when it was written."""
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        end = file.read()
    return f"{crc32c(end, int.from_bytes(end, 'little')):08x}"


def image_block(size: tuple[int, int], channels: int) -> int:
    """Return how many images have a checksum together."""
    return max(1, IMAGE_BLOCK_BYTES // (size[0] * size[1] * channels))


def check_small_files(folder: Path) -> None:
    """Compare all files of a folder with its manifest, but for large arrays, which are checked by piece.

    Raises
    ------
    StoreError
        Of the first file that is missing or not as it was written.
    """
    for name, (size, checksum) in manifest_of(folder).items():
        if not name.startswith(LARGE):
            wrong = _wrong(folder / name, size, checksum)
            if wrong is not None:
                raise StoreError(wrong, where=folder / name, remedy=REMEDY)


def _wrong(path: Path, size: int, checksum: str) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != size:
        return f"holds {path.stat().st_size} bytes, not {size}"
    return None if _checksum(path) == checksum else "is damaged: its checksum is another"


def damage(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Compare every file of a folder with its manifest.

    Yields
    ------
    str
        A file, relative to the folder.
    str or None
        What is wrong with it; None when it is whole.
    """
    try:
        expected = manifest_of(folder)
    except StoreError as error:
        yield MANIFEST, error.what
        return
    yield MANIFEST, None
    found = set(_files(folder))
    for name, (size, checksum) in expected.items():
        yield name, _wrong(folder / name, size, checksum)
    for name in sorted(found - set(expected)):
        yield name, "does not belong to the store"
