"""Files that never end, lead elsewhere, shrink or cannot be unpacked are refused before they are read."""

import io
import os
import socket
import struct
import subprocess
import sys
import textwrap
import zipfile

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from patchindex.images import open_images

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


def test_files_of_zarr_outside_its_folder_are_refused(write_metadata, tmp_path, gray, refused):
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


@pytest.mark.parametrize(("name", "options"), [("a.zip", {}), ("a.zip", {"skip_bad": True}), ("a.npz", {})])
def test_encrypted_and_unusual_archives_are_named_as_such(name, options, tmp_path, refused):
    path = tmp_path / name
    zip_with(path, flags=1)
    with refused(path, "is encrypted"):
        open_images(path, **options)
    for method, word in ((9, "Deflate64"), (12, "BZIP2"), (14, "LZMA"), (77, "method 77")):
        zip_with(path, method=method)
        with refused(path, f"packed by {word}"):
            open_images(path, **options)
