"""Raw files are ordinary zarr arrays, and can be mapped into memory."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from patchindex.errors import StoreError
from patchindex.store.checksums import crc32c
from patchindex.store.raw import CHECKSUM_BYTES, PIECE, open_raw, raw_checksum, raw_path, write_raw

CASES = [("uint8", (), 1000), ("uint8", (4, 3, 1), 7), ("float32", (5,), 9), ("int64", (), 1)]


@pytest.fixture
def group(tmp_path):
    zarr.open_group(tmp_path, mode="w")
    return tmp_path


def numbers(dtype, shape, n):
    return (np.random.default_rng(0).random((n, *shape)) * 250).astype(dtype)


@pytest.mark.parametrize(("dtype", "shape", "n"), CASES)
def test_zarr_reads_the_file_of_bytes_and_a_checksum(group, dtype, shape, n):
    data = numbers(dtype, shape, n)
    with write_raw(group, "a", dtype, shape) as out:
        out.write(data[: n // 2])
        out.write(data[n // 2 :].tobytes())
    array = zarr.open_group(group, mode="r")["a"]
    assert (array.shape, array.dtype) == (data.shape, data.dtype)
    np.testing.assert_array_equal(array[:], data)
    content = raw_path(group, "a", 1 + len(shape)).read_bytes()
    assert content[:-CHECKSUM_BYTES] == data.tobytes()
    assert content[-CHECKSUM_BYTES:] == crc32c(data).to_bytes(4, "little")
    assert raw_checksum(group, "a") == f"{crc32c(data):08x}"
    mapped = open_raw(group, "a")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, data)
    mapped[0] += 1  # the map is a copy
    assert raw_path(group, "a", 1 + len(shape)).read_bytes() == content


def test_an_array_of_several_chunks_is_refused(group):
    array = zarr.open_group(group, mode="a").create_array(
        "a", shape=(8,), chunks=(4,), dtype="uint8", compressors=[Crc32cCodec()], filters=None
    )
    array[:] = 1
    for read in (open_raw, raw_checksum):
        with pytest.raises(StoreError, match="is not one raw file"):
            read(group, "a")


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


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "not a whole number of entries"), (b"1234567", "not a whole number"), (None, "midway")],
)
def test_after_an_error_or_an_incomplete_entry_there_is_no_array(group, data, words):
    def write():
        with write_raw(group, "a", "int64", (2,)) as out:
            if data is None:
                out.write(bytes(16))
                raise ValueError("midway")
            out.write(data)

    with pytest.raises(ValueError, match=words):
        write()
    assert "a" not in zarr.open_group(group, mode="r")
