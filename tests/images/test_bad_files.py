"""Image files that are too deep or damaged, and files that the system does not let read."""

from __future__ import annotations

import errno
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import patchindex as pi
from patchindex.errors import InputError
from patchindex.images.files import Folder


@pytest.fixture
def deep(rgb):
    """A real colour image as uint16 of 16 bits, whose low bytes are not its high bytes."""
    return rgb[0].astype(np.uint16) * 200 + 77


def png(images, kind):
    """A PNG of 16 bits a channel, which Pillow does not write; of kind 2 RGB, 4 LA, 6 RGBA."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = images.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in images)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def tiff(images, planar):
    """A TIFF of 16 bits a channel, its channels interleaved or one after the other."""
    height, width, channels = images.shape
    planes = [images] if not planar else list(np.moveaxis(images, 2, 0))
    tags = 10
    start = 8 + 2 + 12 * tags + 4  # of what does not fit into a tag: bits, then places and lengths of planes
    pixels = start + 2 * channels + 8 * len(planes)
    lengths = [plane.size * 2 for plane in planes]
    places = [pixels + sum(lengths[:i]) for i in range(len(planes))]

    def longs(values, offset):
        return (len(values), values[0] if len(values) == 1 else offset)

    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, start),
        (259, 4, 1, 1),
        (262, 4, 1, 2),
        (273, 4, *longs(places, start + 2 * channels)),
        (277, 4, 1, channels),
        (278, 4, 1, height),
        (279, 4, *longs(lengths, start + 2 * channels + 4 * len(planes))),
        (284, 4, 1, 2 if planar else 1),
    ]
    head = b"II*\0" + struct.pack("<IH", 8, tags) + b"".join(struct.pack("<HHII", *e) for e in entries)
    bits = struct.pack(f"<{channels}H", *[16] * channels)
    more = struct.pack(f"<{2 * len(planes)}I", *places, *lengths)
    return head + bytes(4) + bits + more + b"".join(plane.astype("<u2").tobytes() for plane in planes)


def ppm(images, largest, plain=False):
    height, width, _ = images.shape
    head = f"P{3 if plain else 6} {width} {height} {largest}\n".encode()
    return head + (" ".join(map(str, images.ravel())).encode() if plain else images.astype(">u2").tobytes())


def test_colours_of_more_than_8_bits_are_refused(deep, tmp_path, refused):
    two, four = deep[:, :, :2], np.concatenate([deep, deep[:, :, :1]], axis=2)
    files = {
        "rgb.png": png(deep, 2),
        "la.png": png(two, 4),
        "rgba.png": png(four, 6),
        "a.tif": tiff(deep, planar=False),
        "planar.tif": tiff(deep, planar=True),
        "a.ppm": ppm(deep, 65535),
        "ten.ppm": ppm(deep % 1024, 1023),
        "plain.ppm": ppm(deep % 1024, 1023, plain=True),
    }
    for i, (name, data) in enumerate(files.items()):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / name).write_bytes(data)
        with refused(name, "more than 8 bits"):
            pi.open_images(tmp_path / str(i))


def test_colours_of_8_bits_and_less_are_read(rgb, tmp_path):
    coarse = rgb[0] >> 3
    (tmp_path / "a.ppm").write_bytes(b"P6 28 28 31\n" + coarse.tobytes())
    words = (coarse[..., 0].astype("<u2") << 10) + (coarse[..., 1].astype("<u2") << 5) + coarse[..., 2]
    # In a BMP 16 bits are those of all three channels; masks of 5, 6 and 5 bits are what Pillow calls ;16.
    head = struct.pack("<IiiHHIIiiII", 40, 28, -28, 1, 16, 3, 1568, 0, 0, 0, 0)
    words = words + (words & ~np.uint16(31))
    bmp = b"BM" + struct.pack("<IHHI", 66 + 1568, 0, 0, 66) + head + struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    (tmp_path / "b.bmp").write_bytes(bmp + words.astype("<u2").tobytes())
    source = pi.open_images(tmp_path)
    assert np.abs(source[:].astype(int) - rgb[0]).max() <= 8


@pytest.fixture
def six(gray, tmp_path):
    """Six images in a folder, the third of which is damaged."""
    root = tmp_path / "six"
    root.mkdir()
    for i, image in enumerate(gray[:6]):
        Image.fromarray(image).save(root / f"{i}.png")
    (root / "2.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_what_the_system_refuses_is_never_skipped(six, monkeypatch, number, refused):
    original = Folder.open

    def open(self, name):
        if name == "4.png":
            raise OSError(number, os.strerror(number))
        return original(self, name)

    assert pi.open_images(six, skip_bad=True).skipped == ("2.png",)
    monkeypatch.setattr(Folder, "open", open)
    with refused(six / "4.png", f"cannot be read ({os.strerror(number)})"):
        pi.open_images(six, skip_bad=True)
    (six / "2.png").unlink()
    with refused(six / "4.png", os.strerror(number)):
        pi.open_images(six)


def test_files_without_permission(six, refused):
    if os.geteuid() == 0:
        pytest.skip("everything is permitted to root")
    (six / "3.png").chmod(0)
    with refused(six / "3.png", "Permission denied", "permissions"):
        pi.open_images(six, skip_bad=True)


def test_a_place_that_no_file_has_is_damage(six, rgb):
    """The system refuses to go there, but the disk is whole."""
    path = six / "2.png"
    Image.fromarray(rgb[0]).save(path, "TIFF", big_tiff=True)
    data = bytearray(path.read_bytes())
    data[8:16] = struct.pack("<Q", 2**63 - 1)  # of the first directory
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"2\.png: not a readable image") as caught:
        pi.open_images(six)
    assert caught.value.__cause__.errno == errno.EINVAL
    assert pi.open_images(six, skip_bad=True).skipped == ("2.png",)


def test_labels_of_all_images_stay_with_those_that_are_left(six, gray, tmp_path, refused):
    (tmp_path / "labels.txt").write_text("10\n11\n12\n13\n14\n15\n")
    for labels in (tmp_path / "labels.txt", np.arange(10, 16)):
        source = pi.open_images(six, skip_bad=True, labels=labels)
        assert source.labels.tolist() == [10, 11, 13, 14, 15]
        np.testing.assert_array_equal(source[3][..., 0], gray[4])
    assert pi.open_images(six, skip_bad=True, labels=np.arange(6), limit=3).labels.tolist() == [0, 1, 3]
    with refused("labels", "5 labels for 6 images"):
        pi.open_images(six, skip_bad=True, labels=np.arange(5))


def test_labels_for_a_source_that_is_open_are_for_what_is_in_it(six):
    source = pi.open_images(six, skip_bad=True)
    for opened in (source, source.subset(slice(0, 5)), pi.open_images(source, resize=14)):
        assert pi.open_images(opened, labels=np.arange(5)).labels.tolist() == [0, 1, 2, 3, 4]


def test_labels_of_all_images_of_several_folders(six, tmp_path, gray):
    other = tmp_path / "whole"
    other.mkdir()
    for i, image in enumerate(gray[6:8]):
        Image.fromarray(image).save(other / f"{i}.png")
    for paths, left in (([other, six], [0, 1, 2, 3, 5, 6, 7]), ([six, other], [0, 1, 3, 4, 5, 6, 7])):
        source = pi.open_images(paths, skip_bad=True, labels=np.arange(8))
        assert source.labels.tolist() == left
        assert source.skipped == ("2.png",)
    with pytest.raises(InputError, match="7 labels for 8 images"):
        pi.open_images([six, other], skip_bad=True, labels=np.arange(7))
