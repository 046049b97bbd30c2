"""Manifests, checksummed files and blocks of images."""

from __future__ import annotations

import hashlib

import google_crc32c
import numpy as np
import pytest

from patchindex.errors import StoreError
from patchindex.store.checksums import (
    CURVE,
    IMAGE_BLOCK_BYTES,
    MANIFEST,
    bytes_of,
    check_small_files,
    checksum_of_file,
    fingerprint,
    image_block,
    read_checksummed,
    read_manifest,
    write_checksummed,
    write_manifest,
)

FILES = {"zarr.json": b"{}", "labels/c/0": b"12345", "labels/zarr.json": b"{ }", "empty": b""}


@pytest.fixture
def folder(tmp_path):
    """A folder of three files, and of files that the manifest leaves out."""
    for name, content in {**FILES, ".DS_Store": b"x", "scales/k003/zarr.json": b"{}"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path)
    return tmp_path


def test_a_manifest_has_the_size_and_the_checksum_of_each_file(folder):
    assert read_manifest(folder) == {
        name: (len(content), f"{google_crc32c.value(content):08x}") for name, content in FILES.items()
    }


def test_bytes_of_a_folder_count_the_manifest_and_the_curve(folder):
    listed = sum(map(len, FILES.values()))
    assert bytes_of(folder) == listed + (folder / MANIFEST).stat().st_size
    write_checksummed(folder / CURVE, {"a": 1})
    assert bytes_of(folder) == listed + sum((folder / name).stat().st_size for name in (MANIFEST, CURVE))


@pytest.mark.parametrize("content", [b"1234", b"123456", b"12346"])
def test_a_file_of_another_size_or_content_is_refused(folder, content):
    check_small_files(folder)
    (folder / "labels/c/0").write_bytes(content)
    with pytest.raises(StoreError, match="labels/c/0"):
        check_small_files(folder)


def test_a_changed_byte_of_a_checksummed_file_is_refused(tmp_path):
    path = tmp_path / CURVE
    write_checksummed(path, {"b": [1, 2], "a": "x"})
    assert read_checksummed(path) == {"a": "x", "b": [1, 2]}
    path.write_bytes(path.read_bytes().replace(b"[1,2]", b"[1,3]"))
    with pytest.raises(StoreError, match="checksum mismatch"):
        read_checksummed(path)


def test_the_checksum_of_a_file_is_that_of_all_its_bytes(tmp_path):
    content = bytes(range(256)) * 40_000  # more than a piece
    (tmp_path / "a").write_bytes(content)
    assert checksum_of_file(tmp_path / "a") == f"{google_crc32c.value(content):08x}"


@pytest.mark.parametrize(
    ("size", "channels"), [((32, 32), 3), ((28, 28), 1), ((7, 900), 1), ((2000, 900), 3)]
)
def test_a_block_of_images_fills_its_bytes(size, channels):
    images, each = image_block(size, channels), size[0] * size[1] * channels
    assert images * each <= max(IMAGE_BLOCK_BYTES, each)
    assert (images + 1) * each > IMAGE_BLOCK_BYTES


def test_a_fingerprint_is_of_the_contents():
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    expected = hashlib.sha256(array.tobytes()).hexdigest()[:16]
    assert fingerprint(array) == fingerprint(array.tobytes()) == expected
    assert fingerprint(array.T.copy().T) == expected
    assert fingerprint({"b": 1, "a": [2]}) == fingerprint({"a": [2], "b": 1})
    assert fingerprint({"b": 1}) != fingerprint({"b": 2})
    assert len(fingerprint({})) == 16
