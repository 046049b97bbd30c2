"""Files that lie, never end, or lead elsewhere are refused before their data are read."""

import gzip
import io
import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from patchindex.images import open_images, untrusted

pytestmark = pytest.mark.usefixtures("deadline")

SOURCES = ["a.npz", "a.npy", "a.h5", "a.zip", "a-images-idx3-ubyte", "a-images-idx3-ubyte.gz", "a.tar"]


# Regular files only.


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()


def link_to_zero(path):
    path.symlink_to("/dev/zero")


SPECIAL = pytest.mark.parametrize("make", [make_fifo, make_socket, link_to_zero])


@SPECIAL
@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_is_no_regular_file_is_refused(make, name, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)  # the name of a socket has at most 107 characters
    path = tmp_path / name
    make(path.relative_to(tmp_path) if make is make_socket else path)
    with refused(path, "not a regular file"):
        open_images(path)


@SPECIAL
@pytest.mark.parametrize("name", ["l.txt", "l.csv", "l.npy", "l.npz", "l-labels-idx1-ubyte"])
def test_a_label_file_that_is_no_regular_file_is_refused(make, name, tmp_path, monkeypatch, gray, refused):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    make(path.relative_to(tmp_path) if make is make_socket else path)
    with refused(path, "not a regular file"):
        open_images(gray, labels=path)


@SPECIAL
def test_an_image_file_that_is_no_regular_file_is_refused_or_skipped(
    make, tmp_path, monkeypatch, gray, write_pictures, refused
):
    monkeypatch.chdir(write_pictures(tmp_path, gray[:3]))
    make(tmp_path / "bad.png" if make is not make_socket else (tmp_path / "bad.png").relative_to(tmp_path))
    with refused(tmp_path / "bad.png", "not a regular file"):
        open_images(tmp_path)
    source = open_images(tmp_path, skip_bad=True)
    assert source.skipped == ("bad.png",)
    np.testing.assert_array_equal(source[:][..., 0], gray[:3])


def test_a_list_of_celeba_that_is_no_regular_file_is_refused(tmp_path, gray, write_pictures, refused):
    write_pictures(tmp_path / "img_align_celeba", gray[:3])
    make_fifo(tmp_path / "list_eval_partition.txt")
    with refused("list_eval_partition.txt", "a FIFO, not a regular file"):
        open_images(tmp_path)


@pytest.mark.parametrize("name", ["zarr.json", "c/0/0/0"])
def test_a_file_of_a_zarr_array_that_is_no_regular_file_is_refused(name, tmp_path, gray, refused):
    zarr.create_array(str(tmp_path / "a.zarr"), data=gray)
    (tmp_path / "a.zarr" / name).unlink()
    make_fifo(tmp_path / "a.zarr" / name)
    with refused("a.zarr", "a FIFO, not a regular file"):
        open_images(tmp_path / "a.zarr")[:]


# Headers that announce more than there is.


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


def write_metadata(folder, zarr_format=3, **changes):
    """Write an array of images in zarr, and change its metadata."""
    images = np.full((20, 28, 28), 7, np.uint8)
    zarr.create_array(str(folder), data=images, chunks=(5, 28, 28), zarr_format=zarr_format)
    path = folder / ("zarr.json" if zarr_format == 3 else ".zarray")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_huge_arrays_of_zarr_of_which_nothing_is_stored_are_refused(tmp_path, refused):
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
def test_a_chunk_of_zarr_that_fills_the_memory_is_refused(codec, tmp_path, small_memory, refused):
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


def test_a_chunk_of_zarr_that_is_too_long_is_refused(tmp_path, refused):
    write_metadata(tmp_path / "a.zarr")
    with (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").open("wb") as file:
        file.truncate(10**10)
    with refused("a.zarr", "has 10000000000 bytes"):
        open_images(tmp_path / "a.zarr")[:]


def test_a_picture_that_runs_a_program_is_not_an_image(tmp_path, refused):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"
    )
    with refused(tmp_path / "a.png", "not a readable image", "cannot identify"):
        open_images(tmp_path)[:]


# Codecs and types that could run code.


class Payload:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickled_objects_are_never_loaded(tmp_path, refused):
    import pickle

    payload = np.array([Payload(tmp_path / "ran")], object)
    np.save(tmp_path / "a.npy", payload, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=payload)
    np.savez(tmp_path / "b.npz", images=np.zeros((1, 4, 4), np.uint8), labels=payload)
    for version in (2, 3):
        write_metadata(tmp_path / f"{version}.zarr", version)
    array = tmp_path / "2.zarr" / ".zarray"
    metadata = json.loads(array.read_text())
    metadata |= {"dtype": "|O", "filters": [{"id": "pickle"}], "compressor": None, "fill_value": None}
    array.write_text(json.dumps(metadata))
    for chunk in (tmp_path / "2.zarr").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(payload))
    metadata = json.loads((tmp_path / "3.zarr" / "zarr.json").read_text())
    metadata["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    (tmp_path / "3.zarr" / "zarr.json").write_text(json.dumps(metadata))
    for name in ("a.npy", "a.npz", "b.npz", "2.zarr", "3.zarr"):
        with refused(name):
            open_images(tmp_path / name)[:]
    for name in ("a.npy", "b.npz"):
        with refused(name, "Python objects"):
            open_images(np.zeros((1, 4, 4), np.uint8), labels=tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("version", "changes", "words"),
    [
        (2, {"compressor": {"id": "bz2", "level": 1}}, "codec bz2"),
        (2, {"filters": [{"id": "json2"}], "dtype": "|O", "fill_value": ""}, ""),
        (2, {"filters": [{"id": "pickle"}]}, "pickle"),
        (2, {"dtype": [["a", "|O"]]}, ""),
        (2, {"dtype": "|S4", "fill_value": ""}, "dtype"),
        (3, {"data_type": "string", "fill_value": ""}, ""),
        (3, {"codecs": [{"name": "vlen-utf8"}]}, ""),
        (3, {"codecs": [{"name": "numcodecs.zlib", "configuration": {"level": 1}}]}, ""),
        (3, {"data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 4}}}, ""),
    ],
)
@pytest.mark.filterwarnings("ignore")  # zarr warns of codecs that are not in its specification
def test_types_and_codecs_that_are_not_for_numbers_are_refused(version, changes, words, tmp_path, refused):
    write_metadata(tmp_path / "a.zarr", version, **changes)
    with refused("a.zarr", words):
        open_images(tmp_path / "a.zarr")[:]


@pytest.mark.parametrize("codec", ["blosc", "zlib", "gzip", "zstd", "lz4"])
def test_usual_codecs_of_zarr_2_are_read(codec, tmp_path, gray):
    import numcodecs

    compressor = numcodecs.get_codec({"id": codec})
    zarr.create_array(str(tmp_path / "a.zarr"), data=gray, zarr_format=2, compressors=compressor)
    np.testing.assert_array_equal(open_images(tmp_path / "a.zarr")[:][..., 0], gray)


def test_usual_codecs_of_zarr_3_are_read(tmp_path, gray):
    codecs = zarr.codecs
    for i, pack in enumerate([codecs.BloscCodec(), codecs.GzipCodec(), codecs.ZstdCodec(checksum=True)]):
        settings = {"chunks": (2, 28, 28), "shards": (10, 28, 28)} if i else {}
        packs = [pack, codecs.Crc32cCodec()]
        filters = [codecs.TransposeCodec(order=(1, 0, 2))]
        zarr.create_array(
            str(tmp_path / f"{i}.zarr"), data=gray, filters=filters, compressors=packs, **settings
        )
        np.testing.assert_array_equal(open_images(tmp_path / f"{i}.zarr")[:][..., 0], gray)


# Data outside the file or folder.


def test_links_of_hdf5_to_other_files_are_refused_unless_allowed(tmp_path, gray, labels, refused):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["group/images"], file["labels"] = gray, labels
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = h5py.ExternalLink("other.h5", "/group/images")
        file["labels"] = h5py.ExternalLink("other.h5", "labels")
        file["x/deep"] = h5py.ExternalLink("other.h5", "group")
    for name in ("a.h5", "a.h5::x/deep/images"):
        with refused("a.h5", "link to another file, other.h5", "external_links=True"):
            open_images(tmp_path / name)
        source = open_images(tmp_path / name, external_links=True)
        np.testing.assert_array_equal(source[:][..., 0], gray)
    np.testing.assert_array_equal(open_images(tmp_path / "a.h5", external_links=True).labels, labels)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"] = gray
        file["labels"] = h5py.ExternalLink("other.h5", "labels")
    with refused("b.h5", "labels is a link to another file"):
        open_images(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["images"] = h5py.ExternalLink("d.h5", "images")
    with refused("d.h5", "is not there"):
        open_images(tmp_path / "c.h5", external_links=True)
    os.mkfifo(tmp_path / "d.h5")
    with refused("d.h5", "not a regular file"):
        open_images(tmp_path / "c.h5", external_links=True)


def test_data_of_hdf5_in_other_files_are_refused(tmp_path, gray, refused):
    (tmp_path / "raw").write_bytes(gray.tobytes())
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("images", gray.shape, np.uint8, external=[(str(tmp_path / "raw"), 0, gray.size)])
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["images"] = gray
    layout = h5py.VirtualLayout(gray.shape, np.uint8)
    layout[:] = h5py.VirtualSource(str(tmp_path / "source.h5"), "images", gray.shape)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("images", layout)
    for name, words in (("raw.h5", "in another file"), ("virtual.h5", "virtual data set")):
        for options in ({}, {"external_links": True}):
            with refused(name, words):
                open_images(tmp_path / name, **options)


def test_links_inside_an_hdf5_file_are_followed(tmp_path, gray, labels, refused):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/x"], file["deep/y"] = gray, labels
        file["images"], file["labels"] = h5py.SoftLink("/deep/x"), h5py.SoftLink("short/y")
        file["short"] = h5py.SoftLink("deep")
        file["loop"], file["back"] = h5py.SoftLink("/back"), h5py.SoftLink("/loop")
        file["self/images"] = h5py.SoftLink("images")
        file["up"] = file["/"]
        file["nowhere"] = h5py.SoftLink("/not/there")
    source = open_images(tmp_path / "a.h5")
    np.testing.assert_array_equal(source[:][..., 0], gray)
    np.testing.assert_array_equal(source.labels, labels)
    np.testing.assert_array_equal(open_images(tmp_path / "a.h5::up/up/short/x")[:][..., 0], gray)
    for name in ("loop", "back", "self/images"):
        with refused("a.h5", "round in a circle"):
            open_images(tmp_path / f"a.h5::{name}")
    with refused("a.h5", "no dataset nowhere"):
        open_images(tmp_path / "a.h5::nowhere")


def test_files_of_zarr_outside_its_folder_are_refused(tmp_path, gray, refused):
    write_metadata(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    chunk.rename(tmp_path / "chunk")
    chunk.symlink_to(tmp_path / "chunk")
    with refused("a.zarr", "leads out of the folder"):
        open_images(tmp_path / "a.zarr")[:]
    chunk.unlink()
    chunk.symlink_to(tmp_path / "a.zarr" / "c" / "1" / "0" / "0")  # inside
    assert (open_images(tmp_path / "a.zarr")[:] == 7).all()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    assert (open_images(tmp_path / "link.zarr")[:] == 7).all()
    zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    (tmp_path / "g.zarr" / "images").symlink_to(tmp_path / "a.zarr")
    for name in (str(tmp_path / "g.zarr"), f"file://{tmp_path}/g.zarr"):
        with refused("g.zarr", "leads out of the folder"):
            open_images(name)


# Files that shrink while they are mapped.


@pytest.mark.parametrize("name", ["a.npy", "a-images-idx3-ubyte"])
def test_a_mapped_file_that_becomes_shorter_is_refused(name, tmp_path):
    """A child process reads, because the system kills a process that reads behind the end."""
    images = np.arange(200 * 64 * 64, dtype=np.uint64).astype(np.uint8).reshape(200, 64, 64)
    if name == "a.npy":
        np.save(tmp_path / name, images)
    else:
        (tmp_path / name).write_bytes(struct.pack(">I3I", 0x803, *images.shape) + images.tobytes())
    script = f"""
        import os
        from patchindex.images import open_images, untrusted
        source = open_images({str(tmp_path / name)!r})
        part = source.subset(slice(100, 200))
        print(source[:].sum())
        os.truncate({str(tmp_path / name)!r}, 4096)
        for read in (lambda: source[:], lambda: part[5], lambda: source.read([199, 3])):
            try:
                read()
            except Exception as error:
                print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, (run.returncode, run.stderr[-500:])
    first, *others = run.stdout.splitlines()
    assert int(first) == images.sum()
    assert len(others) == 3
    assert all("has become shorter" in line for line in others)


def test_a_mapped_array_of_the_user_that_becomes_shorter_is_refused(tmp_path, gray, refused):
    np.save(tmp_path / "a.npy", gray)
    source = open_images(np.load(tmp_path / "a.npy", mmap_mode="r")[3:15])
    np.testing.assert_array_equal(source[:][..., 0], gray[3:15])
    os.truncate(tmp_path / "a.npy", 1000)
    with refused("array", "has become shorter"):
        source[:]


# Zip archives that zipfile cannot read.


def zip_with(path, flags=0, method=None):
    """Write an archive of one PNG whose directory has other flags or another method."""
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy" if path.suffix == ".npz" else "a.png", picture.getvalue())
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = data.index(magic) + offset
        struct.pack_into("<H", data, at, flags)
        if method is not None:
            struct.pack_into("<H", data, at + 2, method)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.zip", "a.npz"])
def test_encrypted_and_unusual_archives_are_named_as_such(name, tmp_path, refused):
    path = tmp_path / name
    for options in ({}, {"skip_bad": True}):
        zip_with(path, flags=1)
        with refused(path, "is encrypted"):
            open_images(path, **options)
        for method, word in ((9, "Deflate64"), (12, "BZIP2"), (14, "LZMA"), (77, "method 77")):
            zip_with(path, method=method)
            with refused(path, f"packed by {word}"):
                open_images(path, **options)
