"""Image files in folders and zip archives: names, labels, modes, and files that are left out."""

import errno
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from patchindex.errors import InputError
from patchindex.images import open_images
from patchindex.images.files import Folder
from patchindex.images.format import Options
from patchindex.images.formats.folder import FolderSource


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


# Names and labels.


def test_files_are_sorted_by_relative_path_and_hidden_files_left_out(root, gray, write_pictures):
    names = ["b/1.png", "a/2.png", "a/10.png", "c.png", "a/deep/er/0.png"]
    write_pictures(root, gray[:5], names)
    write_pictures(root, gray[5:7], [".hidden/0.png", "a/._2.png"])
    (root / "notes.txt").write_text("no image")
    order = sorted(range(5), key=lambda i: names[i])
    np.testing.assert_array_equal(open_images(root)[:][..., 0], gray[order])


def test_links_to_folders_are_followed(root, tmp_path, gray, write_pictures):
    write_pictures(tmp_path / "elsewhere", gray[:2])
    write_pictures(root / "dogs", gray[2:4])
    (root / "cats").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert open_images(root, labels="folders").label_names == ("cats", "dogs")


@pytest.mark.parametrize(("target", "words"), [("gone.png", "to gone.png"), ("1.png", "to itself")])
def test_links_that_lead_nowhere_are_named_or_skipped(root, gray, write_pictures, target, words):
    write_pictures(root, gray[:3], ["0.png", "1.png", "2.png"])
    (root / "1.png").unlink()
    (root / "1.png").symlink_to(target)
    with pytest.raises(InputError, match=rf"1\.png: is a link .*{words}"):
        open_images(root)
    found = open_images(root, skip_bad=True)
    assert (found.skipped, found.kept.tolist()) == (("1.png",), [0, 2])
    assert len(found) == 2


@pytest.mark.parametrize(
    ("names", "label_names", "labels"),
    [
        (["ant/0.png", "cat/1.png", "cat/deep/2.png", "dog/1.png"], ("ant", "cat", "dog"), [0, 1, 1, 2]),
        (
            ["set/train/cat/1.png", "set/train/cat/deep/2.png", "set/train/dog/1.png"],
            ("cat", "dog"),
            [0, 0, 1],
        ),
        (["cat/1.png", "cat/deep/2.png", "cat/deep/3.png"], ("cat",), [0, 0, 0]),
    ],
)
def test_folders_are_labels(root, gray, names, label_names, labels, write_pictures):
    source = open_images(write_pictures(root, gray[: len(names)], names), labels="folders")
    assert source.label_names == source.subset([1]).label_names == label_names
    assert source.labels.tolist() == labels
    assert source.labels.dtype == np.int64


def test_an_image_in_no_folder_has_no_label(root, gray, write_pictures, refused):
    write_pictures(root, gray[:2], ["cat/1.png", "loose.png"])
    with refused(root / "loose.png", "sub-folder", "labels='FILE'"):
        open_images(root, labels="folders")


def test_a_zip_archive_with_a_member_without_a_name_is_refused(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x.png", b"no picture")
    damaged = (tmp_path / "a.zip").read_bytes().replace(b"x.png", b"\0.png")  # names end at a zero byte
    (tmp_path / "a.zip").write_bytes(damaged)
    with refused("has no name", "a.zip", "download it again"):
        open_images(tmp_path / "a.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("before", ["./", "", "/"])
def test_a_zip_archive_is_the_folder_in_it(root, tmp_path, gray, before, write_pictures):
    """Names begin with `./` as in `zip -r a.zip ./photos`, or have backslashes as on Windows."""
    write_pictures(root, gray, [f"{i % 2}/{i:02}.png" for i in range(20)])
    plain = open_images(root, labels="folders")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in plain.names:
            inside = f"photos/{name}" if before else f"photos\\{name}".replace("/", "\\")
            file.writestr(before + inside, (root / name).read_bytes())
        for other in (".checkpoints/1.png", "__MACOSX/1.png", ".hidden.png", "readme.txt"):
            file.writestr(f"photos/{other}", b"no image")
    zipped = open_images(tmp_path / "a.zip", labels="folders")
    assert zipped.names == tuple(f"photos/{name}" for name in plain.names)
    assert zipped.label_names == plain.label_names == ("0", "1")
    np.testing.assert_array_equal(zipped[:], plain[:])
    np.testing.assert_array_equal(zipped.labels, plain.labels)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as file:
        for name in ("1/01.png", "1/03.png"):  # the last entry of a name counts
            file.writestr("photos/0/00.png", (root / name).read_bytes())
    again = open_images(tmp_path / "a.zip")
    assert len(again) == 20
    np.testing.assert_array_equal(again[0][..., 0], gray[3])


# Modes and sizes.


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".pgm", ".PNG", ".gif"])
def test_lossless_files_round_trip(root, gray, suffix, write_pictures):
    write_pictures(root, gray[:3], [f"{i}{suffix}" for i in range(3)])
    np.testing.assert_array_equal(open_images(root, grayscale=True)[:][..., 0], gray[:3])
    assert open_images(root).shape == (3, 28, 28, 3 if suffix == ".gif" else 1)  # a palette is colour


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".ppm"])
def test_colour_files_are_decoded(root, rgb, suffix, write_pictures):
    smooth = np.asarray(Image.fromarray(rgb[0]).resize((56, 56)).resize((28, 28)))
    source = open_images(write_pictures(root, [smooth], [f"a{suffix}"]))
    assert source.shape == (1, 28, 28, 3)
    assert np.abs(source[0].astype(int) - smooth).mean() < 20


def test_one_colour_image_makes_all_rgb(root, gray, rgb, write_pictures):
    source = open_images(write_pictures(root, [gray[0], rgb[0]]))
    np.testing.assert_array_equal(source[0], np.repeat(gray[0][..., None], 3, axis=2))
    np.testing.assert_array_equal(source[1], rgb[0])
    assert open_images(root, grayscale=True).shape == (2, 28, 28, 1)


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA"])
def test_other_modes_are_converted(root, rgb, mode):
    root.mkdir()
    Image.fromarray(rgb[0]).convert(mode).save(root / "a.png")
    source = open_images(root)
    assert source.shape == (1, 28, 28, 1 if mode in ("1", "LA") else 3)
    if mode == "RGBA":
        np.testing.assert_array_equal(source[0], rgb[0])


def test_transparent_palettes_are_read(root, rgb):
    root.mkdir()
    image = Image.fromarray(rgb[0]).quantize(16)
    image.save(root / "a.png", transparency=bytes([0, 128, 255]))
    rgba = image.convert("RGBA")
    rgba.putalpha(Image.open(root / "a.png").convert("RGBA").getchannel("A"))
    white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
    np.testing.assert_array_equal(open_images(root)[0], np.asarray(white.convert("RGB")))


def test_images_of_several_sizes_need_a_transform(root, gray, write_pictures, refused):
    write_pictures(root, [gray[0], gray[1], gray[2][:20], gray[3][:10]])
    with refused(root / "002.png", "20×28", "28×28", "resize="):
        open_images(root)
    assert open_images(root, resize=16).shape == (4, 16, 16, 1)
    assert open_images(root, crop=(10, 28)).shape == (4, 10, 28, 1)
    with refused(root / "002.png", "a smaller crop"):
        open_images(root, crop=28)


def test_transforms_are_those_of_arrays(root, rgb, write_pictures):
    options = {"crop": (20, 24), "resize": (9, 11), "grayscale": True}
    source = open_images(write_pictures(root, rgb), **options)
    np.testing.assert_array_equal(source[:], open_images(rgb, **options)[:])


def test_files_that_changed_since_the_folder_was_opened_are_refused(root, gray, rgb, write_pictures, refused):
    source = open_images(write_pictures(root, gray[:3]))
    Image.fromarray(gray[7][:20]).save(root / "001.png")
    with refused(root / "001.png", "20×28 pixels, but the first image has 28×28"):
        source.read([1])
    Image.fromarray(rgb[7]).save(root / "001.png")
    with refused(root / "001.png", "has colours"):
        source.read([1])
    (root / "001.png").unlink()
    with refused(root / "001.png", "is not there any more"):
        source.read([1])


# More than 8 bits.


def png(images, kind):
    """Return a PNG of 16 bits per channel, which Pillow does not write; of kind 2 RGB, 4 LA, 6 RGBA."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = images.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in images)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(images, planar):
    """Return a TIFF of 16 bits per channel, its channels interleaved or one after the other."""
    height, width, channels = images.shape
    planes = list(np.moveaxis(images, 2, 0)) if planar else [images]
    tags = 10
    start = 8 + 2 + 12 * tags + 4  # of values that do not fit into a tag
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


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("rgb.png", lambda x: png(x, 2)),
        ("la.png", lambda x: png(x[:, :, :2], 4)),
        ("rgba.png", lambda x: png(np.concatenate([x, x[:, :, :1]], axis=2), 6)),
        ("a.tif", lambda x: tiff(x, planar=False)),
        ("planar.tif", lambda x: tiff(x, planar=True)),
        ("a.ppm", lambda x: ppm(x, 65535)),
        ("ten.ppm", lambda x: ppm(x % 1024, 1023)),
        ("plain.ppm", lambda x: ppm(x % 1024, 1023, plain=True)),
    ],
)
def test_colours_of_more_than_8_bits_are_refused(rgb, tmp_path, name, encode, refused):
    (tmp_path / name).write_bytes(encode(rgb[0].astype(np.uint16) * 200 + 77))
    with refused(name, "more than 8 bits", "convert"):
        open_images(tmp_path)


def test_gray_images_of_more_than_8_bits_are_refused(gray, tmp_path, refused):
    Image.fromarray(gray[0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with refused(tmp_path / "deep.png", "more than 8 bits", "convert"):
        open_images(tmp_path)


def test_colours_of_less_than_8_bits_are_read(rgb, tmp_path):
    coarse = rgb[0] >> 3
    (tmp_path / "a.ppm").write_bytes(b"P6 28 28 31\n" + coarse.tobytes())
    words = (coarse[..., 0].astype("<u2") << 10) + (coarse[..., 1].astype("<u2") << 5) + coarse[..., 2]
    # A BMP of 16 bits has 5, 6 and 5 bits for its channels; Pillow's name for them ends in ;16 too.
    head = struct.pack("<IiiHHIIiiII", 40, 28, -28, 1, 16, 3, 1568, 0, 0, 0, 0)
    words = words + (words & ~np.uint16(31))
    bmp = b"BM" + struct.pack("<IHHI", 66 + 1568, 0, 0, 66) + head + struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    (tmp_path / "b.bmp").write_bytes(bmp + words.astype("<u2").tobytes())
    assert np.abs(open_images(tmp_path)[:].astype(int) - rgb[0]).max() <= 8


# Files that cannot be read.


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp", ".tif", ".ppm"])
@pytest.mark.parametrize("kept", [0, 2 / 3])
def test_truncated_files_are_refused(root, rgb, suffix, kept, write_pictures, refused):
    write_pictures(root, rgb[:2], [f"{i}{suffix}" for i in range(2)])
    path = root / f"1{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with refused(path, "not a readable image", "skip_bad=True"):
        open_images(root)[:]


def test_a_damaged_file_in_an_archive_is_named(root, tmp_path, gray, write_pictures, refused):
    write_pictures(root, gray[:3])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in sorted(root.iterdir()):
            file.write(path, path.name)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"IDAT") + 10] ^= 255
    (tmp_path / "a.zip").write_bytes(data)
    with refused(tmp_path / "a.zip" / "000.png", "not a readable image"):
        open_images(tmp_path / "a.zip")[:]


def test_folders_without_images_are_refused(root, refused):
    root.mkdir()
    (root / "notes.txt").write_text("no image")
    with refused(root, "no image files", ".png"):
        open_images(root)
    (root / "a.png").write_text("no image")
    with refused(root, "none of 1 images can be read"):
        open_images(root, skip_bad=True)


@pytest.fixture
def six(root, gray, write_pictures):
    """Six images in a folder, the third of which is damaged."""
    write_pictures(root, gray[:6])
    (root / "002.png").write_bytes(b"no image")
    return root


def test_bad_files_are_skipped_when_asked(six, gray, refused):
    with refused(six / "002.png", "skip_bad=True"):
        open_images(six)
    source = open_images(six, skip_bad=True)
    assert source.skipped == ("002.png",)
    np.testing.assert_array_equal(source[:][..., 0], gray[[0, 1, 3, 4, 5]])
    assert open_images(six, skip_bad=True, resize=7, limit=3).skipped == ("002.png",)


def test_given_labels_are_for_skipped_images_too(six, tmp_path, refused):
    (tmp_path / "labels.txt").write_text("10\n11\n12\n13\n14\n15\n")
    for labels in (tmp_path / "labels.txt", np.arange(10, 16)):
        assert open_images(six, skip_bad=True, labels=labels).labels.tolist() == [10, 11, 13, 14, 15]
    assert open_images(six, skip_bad=True, labels=np.arange(6), limit=3).labels.tolist() == [0, 1, 3]
    with refused("labels", "5 labels for 6 images"):
        open_images(six, skip_bad=True, labels=np.arange(5))


def test_labels_of_an_open_source_are_for_the_images_in_it(six):
    source = open_images(six, skip_bad=True)
    for opened in (source, source.subset(slice(0, 5)), open_images(source, resize=14)):
        assert open_images(opened, labels=np.arange(5)).labels.tolist() == [0, 1, 2, 3, 4]


class Failing(Folder):
    """A folder in which the system refuses to read one file."""

    def __init__(self, root, number):
        super().__init__(root)
        self.number = number

    def open(self, name):
        if name == "004.png":
            raise OSError(self.number, os.strerror(self.number))
        return super().open(name)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_errors_of_the_system_are_never_skipped(six, number, refused):
    files = Failing(six, number)
    with refused(six / "004.png", f"cannot be read ({os.strerror(number)})"):
        FolderSource(files, files.names(), Options(skip_bad=True))
    (six / "002.png").unlink()
    with refused(six / "004.png", f"cannot be read ({os.strerror(number)})"):
        FolderSource(files, files.names(), Options())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_never_skipped(six, refused):
    (six / "003.png").chmod(0)
    with refused(six / "003.png", "Permission denied", "permissions"):
        open_images(six, skip_bad=True)


def test_a_seek_outside_the_file_is_damage(six, rgb, refused):
    """The system refuses such a seek, but the file is at fault."""
    path = six / "002.png"
    Image.fromarray(rgb[0]).save(path, "TIFF", big_tiff=True)
    data = bytearray(path.read_bytes())
    data[8:16] = struct.pack("<Q", 2**63 - 1)  # the place of the first directory
    path.write_bytes(data)
    with refused("002.png: not a readable image"):
        open_images(six)
    assert open_images(six, skip_bad=True).skipped == ("002.png",)
