"""Raw files are ordinary zarr arrays, and can be mapped into memory."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from patchindex.errors import StoreError
from patchindex.store.checksums import crc32c
from patchindex.store.raw import CHECKSUM_BYTES, PIECE, open_raw, raw_path, write_raw

CASES = [("uint8", (), 1000), ("uint8", (4, 3, 1), 7), ("float32", (5,), 9), ("int64", (), 1)]


@pytest.fixture
def group(tmp_path):
    zarr.open_group(tmp_path, mode="w")
    return tmp_path


def numbers(dtype, shape, n):
    return (np.random.default_rng(0).random((n, *shape)) * 250).astype(dtype)


@pytest.mark.parametrize(("dtype", "shape", "n"), CASES)
def test_zarr_reads_the_written_array(group, dtype, shape, n):
    data = numbers(dtype, shape, n)
    with write_raw(group, "a", dtype, shape) as out:
        out.write(data[: n // 2])
        out.write(data[n // 2 :].tobytes())
    array = zarr.open_group(group, mode="r")["a"]
    assert array.shape == data.shape
    assert array.dtype == data.dtype
    np.testing.assert_array_equal(array[:], data)


@pytest.mark.parametrize(("dtype", "shape", "n"), CASES)
def test_the_file_is_the_bytes_and_a_checksum(group, dtype, shape, n):
    data = numbers(dtype, shape, n)
    with write_raw(group, "a", dtype, shape) as out:
        out.write(data)
    content = raw_path(group, "a", 1 + len(shape)).read_bytes()
    assert content[:-CHECKSUM_BYTES] == data.tobytes()
    assert content[-CHECKSUM_BYTES:] == crc32c(data).to_bytes(4, "little")
    mapped = open_raw(group, "a")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, data)


def test_pieces_of_any_size_make_the_same_file(tmp_path):
    data = numbers("uint8", (), 2 * PIECE + 12345)
    made = []
    for name, cuts in (("one", []), ("many", [1, 1, PIECE + 1, 2 * PIECE])):  # one piece is empty
        zarr.open_group(tmp_path / name, mode="w")
        with write_raw(tmp_path / name, "a", "uint8") as out:
            for part in np.split(data, cuts):
                out.write(part)
        made.append(raw_path(tmp_path / name, "a", 1).read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("at", [0, 500, 999, 1001])
def test_zarr_finds_a_flipped_bit(group, at):
    with write_raw(group, "a", "uint8") as out:
        out.write(numbers("uint8", (), 1000))
    path = raw_path(group, "a", 1)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(group, mode="r")["a"][:]


@pytest.mark.parametrize("length", [0, 100, 1003, 1005])
def test_a_file_of_another_length_is_refused(group, length):
    with write_raw(group, "a", "uint8") as out:
        out.write(numbers("uint8", (), 1000))
    path = raw_path(group, "a", 1)
    path.write_bytes((path.read_bytes() + b"x")[:length])
    with pytest.raises(StoreError, match=f"holds {length} bytes, not 1004"):
        open_raw(group, "a")
    path.unlink()
    with pytest.raises(StoreError, match="holds 0 bytes, not 1004"):
        open_raw(group, "a")


def test_a_missing_array_is_refused(group):
    with pytest.raises(StoreError, match="'a' is missing"):
        open_raw(group, "a")


def test_after_an_error_there_is_no_array(group):
    def fail():
        with write_raw(group, "a", "uint8") as out:
            out.write(b"12")
            raise KeyError("midway")

    with pytest.raises(KeyError, match="midway"):
        fail()
    assert "a" not in zarr.open_group(group, mode="r")


@pytest.mark.parametrize("data", [b"", b"1234567"])
def test_an_incomplete_entry_is_refused(group, data):
    def write():
        with write_raw(group, "a", "int64", (2,)) as out:
            out.write(data)

    with pytest.raises(ValueError, match="not a whole number of entries"):
        write()
    assert "a" not in zarr.open_group(group, mode="r")


def test_writing_to_the_map_does_not_change_the_file(group):
    with write_raw(group, "a", "uint8") as out:
        out.write(b"123")
    mapped = open_raw(group, "a")
    mapped[0] = 0
    assert raw_path(group, "a", 1).read_bytes()[:3] == b"123"
