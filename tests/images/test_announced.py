"""Headers, metadata and chunks that announce more than there is are refused before memory is taken."""

import gzip
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from patchindex.images import open_images, untrusted

pytestmark = pytest.mark.usefixtures("deadline")


def npy_header(shape, descr="|u1"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


SHAPES = [(10**12, 28, 28), (10**28, 1, 1), (-5, 8, 8), (-1, -8, 8), (2**62, 4, 4), (0, 10**30, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_npy_with_a_false_shape_is_refused(shape, tmp_path, refused):
    (tmp_path / "a.npy").write_bytes(npy_header(shape) + bytes(512))
    with refused(tmp_path / "a.npy"):
        open_images(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_npz_with_a_false_shape_is_refused(shape, tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy_header(shape) + bytes(512))
    with refused(tmp_path / "a.npz"):
        open_images(tmp_path / "a.npz")


def test_an_npz_whose_directory_announces_too_many_bytes_is_refused(tmp_path, refused):
    data = npy_header((10**8, 28, 28)) + bytes(512)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", data)
        archive.filelist[0].file_size = 4 * 10**9
    with refused("images", "truncated", "4000000000"):
        open_images(tmp_path / "a.npz")


def test_an_npy_of_two_arrays_is_refused(tmp_path, gray, refused):
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, gray[:5])
        np.save(file, gray[5:])
    with refused(tmp_path / "a.npy", "behind its array"):
        open_images(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "header", [b"{" * 500, b"{'shape': " + b"(" * 900, b"(", b"\xff" * 20, b"x" * 60_000]
)
def test_an_npy_with_a_damaged_header_is_refused(header, tmp_path, refused):
    data = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header
    (tmp_path / "a.npy").write_bytes(data + bytes(100))
    with refused(tmp_path / "a.npy", "not a readable .npy"):
        open_images(tmp_path / "a.npy")


@pytest.mark.parametrize("sides", [(2**31, 2**31, 2**31), (10**4, 10**4, 10**4)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_with_a_false_shape_is_refused(sides, pack, tmp_path, refused):
    path = tmp_path / f"a-images-idx3-ubyte{'.gz' if pack is gzip.compress else ''}"
    path.write_bytes(pack(struct.pack(">I3I", 0x803, *sides) + bytes(10**4)))
    with refused(path, "truncated", "announces"):
        open_images(path)


@pytest.fixture
def small_memory(monkeypatch):
    """Take a chunk of 32 MiB for too large."""
    monkeypatch.setattr(untrusted, "LARGEST_CHUNK", 32 << 20)


def test_a_chunk_of_hdf5_that_fills_the_memory_is_refused(tmp_path, small_memory, refused):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", (1000, 28, 28), np.uint8, chunks=(500, 28, 28), compression=9)
        images[:500] = 7
        images.id.write_direct_chunk((500, 0, 0), deflated_zeros(40 << 20))
    source = open_images(tmp_path / "a.h5")
    assert (source[:500] == 7).all()
    with refused(tmp_path / "a.h5", "chunks of"):
        source[600]


def deflated_zeros(n):
    """Return n zeros, deflated."""
    return zlib.compress(bytes(n), 9)


def test_huge_arrays_of_hdf5_of_which_nothing_is_stored_are_refused(tmp_path, refused):
    for i, (shape, chunks) in enumerate([((10**12, 28, 28), (1, 28, 28)), ((10**6, 4000, 4000), None)]):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.create_dataset("images", shape, np.uint8, chunks=chunks)
        with refused(f"{i}.h5", "of which only"):
            open_images(tmp_path / f"{i}.h5")
    with h5py.File(tmp_path / "2.h5", "w") as file:
        file.create_dataset("images", (10**5, 100, 200), np.uint8, chunks=(10**5, 100, 200))
    with refused("2.h5"):
        open_images(tmp_path / "2.h5")


def test_huge_arrays_of_zarr_of_which_nothing_is_stored_are_refused(write_metadata, tmp_path, refused):
    write_metadata(tmp_path / "a.zarr", shape=[10**13, 28, 28])
    with refused("a.zarr", "of which only"):
        open_images(tmp_path / "a.zarr")
    write_metadata(tmp_path / "c.zarr", shape=[10**30, 28, 28])
    with refused("c.zarr", "of which only"):
        open_images(tmp_path / "c.zarr")
    write_metadata(tmp_path / "d.zarr", 2, shape=[6, 10**30, 28])
    with refused("d.zarr"):
        open_images(tmp_path / "d.zarr")
    grid = {"name": "regular", "configuration": {"chunk_shape": [10**9, 28, 28]}}
    write_metadata(tmp_path / "b.zarr", shape=[10**9, 28, 28], chunk_grid=grid)
    with refused("b.zarr", "has chunks of"):
        open_images(tmp_path / "b.zarr")


@pytest.mark.parametrize("codec", ["zlib", "gzip", "zstd"])
def test_a_chunk_of_zarr_that_fills_the_memory_is_refused(
    write_metadata, codec, tmp_path, small_memory, refused
):
    grid = {"chunks": [100, 28, 28]}
    write_metadata(tmp_path / "a.zarr", 2, compressor={"id": codec, "level": 1}, **grid)
    bomb = deflated_zeros(40 << 20)
    if codec == "gzip":
        bomb = b"\x1f\x8b\x08" + bytes(7) + bomb[2:-4] + bytes(8)
    if codec == "zstd":
        bomb = b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + bytes(20)
    (tmp_path / "a.zarr" / "0.0.0").write_bytes(bomb)
    with refused("a.zarr", "chunks of" if codec != "zstd" else str(2**40)):
        open_images(tmp_path / "a.zarr")[:]


def test_a_chunk_of_zarr_that_is_too_long_is_refused(write_metadata, tmp_path, refused):
    write_metadata(tmp_path / "a.zarr")
    with (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").open("wb") as file:
        file.truncate(10**10)
    with refused("a.zarr", "has 10000000000 bytes"):
        open_images(tmp_path / "a.zarr")[:]
