"""Image files: names, kinds, stacks, orientation, transparency, size."""

import io
import os
import struct
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import patchindex as pi
from patchindex.errors import PatchIndexWarning
from patchindex.images import open_images

pytestmark = pytest.mark.usefixtures("deadline")


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)


# Names.


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        *((".jfif", "JPEG"), (".jpe", "JPEG"), (".JPEG", "JPEG"), (".tga", "TGA"), (".apng", "PNG")),
        *((".pbm", "PPM"), (".pnm", "PPM"), (".dib", "DIB"), (".avif", "AVIF")),
    ],
)
def test_all_usual_suffixes_are_read(suffix, kind, gray, tmp_path):
    if suffix not in Image.registered_extensions() and kind == "AVIF":
        pytest.skip("this Pillow has no AVIF")
    for i in range(3):
        picture = Image.fromarray(gray[i])
        save(tmp_path / f"{i}{suffix}", picture.convert("1") if suffix == ".pbm" else picture, format=kind)
    assert len(open_images(tmp_path)[:]) == 3


def test_images_of_other_formats_are_named(gray, tmp_path):
    save(tmp_path / "a.png", gray[0])
    for name in ("b.heic", "c.HEIC", "d.jp2", ".e.psd", "labels.csv"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(PatchIndexWarning, match=r"left out: 2 \.heic, 1 \.jp2; convert") as caught:
        assert len(open_images(tmp_path)) == 1
    assert len(caught) == 1


def test_a_file_without_a_signature_is_a_tga_only_by_its_name(gray, tmp_path, refused):
    save(tmp_path / "a.tga", gray[0])
    (tmp_path / "a.tga").rename(tmp_path / "a.png")
    with refused("a.png", "not a readable image"):
        open_images(tmp_path)


def test_bytes_that_are_no_text_in_names_of_folders_and_files(gray, tmp_path):
    root = os.fsencode(tmp_path / "set")
    for i, name in enumerate([b"\xff/1.png", b"ok/\xfe.png", b"ok/bad\xfd.png"]):
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            if b"bad" not in name:
                Image.fromarray(gray[i]).save(file, "PNG")
    source = open_images(tmp_path / "set", labels="folders", skip_bad=True)
    assert source.label_names == ("\\udcff", "ok")
    assert source.skipped == ("ok/bad\\udcfd.png",)
    store = pi.build_index(source, tmp_path / "s.zarr", scales=[3])
    assert store.attributes["label_names"] == ["\\udcff", "ok"]


def test_a_label_is_found_in_each_form_of_unicode(gray, tmp_path):
    names = [unicodedata.normalize(form, "épée") for form in ("NFD", "NFC")]
    for i, name in enumerate(names):
        save(tmp_path / "both" / name / f"{i}.png", gray[i])
        save(tmp_path / f"{i}" / name / "0.png", gray[i])
        save(tmp_path / f"{i}" / "a" / "0.png", gray[i])
    assert open_images(tmp_path / "both", labels="folders").label_names == (names[1],)
    for name in names:
        assert len(open_images(tmp_path / "0" / name)) == len(open_images(tmp_path / "1" / name)) == 1
    joined = open_images([tmp_path / "0", tmp_path / "1"], labels="folders")
    assert joined.label_names == ("a", names[1])
    assert joined.labels.tolist() == [0, 1, 0, 1]


# Links.


def test_links_that_lead_back_are_not_entered(gray, tmp_path):
    for i, name in enumerate(["0.png", "a/1.png", "a/b/2.png"]):
        save(tmp_path / "set" / name, gray[i])
    root = tmp_path / "set"
    (root / "self").symlink_to(root)
    (root / "dot").symlink_to(".")
    (root / "a" / "b" / "up").symlink_to(root / "a")
    (root / "a" / "out").symlink_to(tmp_path)
    assert open_images(root).names == ("0.png", "a/1.png", "a/b/2.png")
    (root / "a" / "b" / "up").unlink()
    (root / "c").symlink_to(root / "a" / "b")  # a sibling
    assert open_images(root).names == ("0.png", "a/1.png", "a/b/2.png", "c/2.png")


def test_links_that_multiply_images_are_refused(gray, tmp_path, refused):
    for i in range(8):
        save(tmp_path / f"{i}" / "0.png", gray[0])
        for j in range(8):
            (tmp_path / f"{i}" / f"to{j}").symlink_to(tmp_path / f"{j}")
    with refused("links lead here from more than 64 places"):
        open_images(tmp_path)


def test_dangling_links_are_named(gray, tmp_path, refused):
    save(tmp_path / "set" / "0.png", gray[0])
    (tmp_path / "set" / "1.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "link.npz").symlink_to("gone.npz")
    with refused("1.png", "is a link to", "gone.png, which does not exist"):
        open_images(tmp_path / "set")
    assert open_images(tmp_path / "set", skip_bad=True).skipped == ("1.png",)
    for options in ({}, {"skip_bad": True}):
        with refused("link.npz", "is a link to gone.npz, which does not exist"):
            open_images(tmp_path / "link.npz", **options)
    with refused("link.npz", "is a link to gone.npz"):
        open_images(gray, labels=tmp_path / "link.npz")


def test_a_dangling_link_of_a_class_folder_is_warned_of(gray, tmp_path):
    save(tmp_path / "cats" / "0.png", gray[0])
    (tmp_path / "dogs").symlink_to(tmp_path / "gone")
    (tmp_path / ".hidden").symlink_to(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.warns(PatchIndexWarning, match="links to nothing are left out: dogs; mend them") as warned:
        assert len(open_images(tmp_path)) == 1
    assert len(warned) == 1


# Stacks.


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_files_of_several_pictures_are_refused(name, rgb, tmp_path, refused):
    frames = [Image.fromarray(image) for image in rgb[:3]]
    save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    save(tmp_path / "ok.png", rgb[0])
    with refused(name, "holds 3 pictures, expected one", "skip_bad=True"):
        open_images(tmp_path)
    assert open_images(tmp_path, skip_bad=True).skipped == (name,)


def test_a_photograph_with_a_preview_is_read(rgb, tmp_path):
    frames = [Image.fromarray(image) for image in rgb[:2]]
    buffer = io.BytesIO()
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:], quality=95)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert np.abs(open_images(tmp_path)[0].astype(int) - rgb[0]).mean() < 20


# Orientation and transparency.


def exif(orientation, order="<"):
    """Return EXIF data with an orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(suffix, orientation, rgb, tmp_path):
    tall = rgb[0][:, 4:24]
    lossless = {".webp": {"lossless": True}, ".jpg": {"quality": 95}}.get(suffix, {})
    for order in "<>":
        data = exif(orientation, order)
        save(tmp_path / f"{order}{suffix}", tall, exif=data[6:] if suffix == ".tif" else data, **lossless)
    source = open_images(tmp_path)
    from PIL import ImageOps

    with Image.open(tmp_path / f"<{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape == ((28, 20, 3) if orientation < 5 else (20, 28, 3))
    np.testing.assert_array_equal(source[0], expected)
    np.testing.assert_array_equal(source[1], expected)


def test_exif_data_behind_the_pixels_of_a_png_turn_the_image(rgb, tmp_path):
    tall = rgb[0][:, 4:24]
    save(tmp_path / "a.png", tall)
    content, data = (tmp_path / "a.png").read_bytes(), b"eXIf" + exif(6)[6:]
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])  # IEND takes 12 bytes
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    for source in (open_images(tmp_path), open_images(tmp_path / "a.zip")):
        assert source.shape == (1, 20, 28, 3)
        np.testing.assert_array_equal(source[0], np.rot90(tall, -1))


@pytest.mark.parametrize(
    "data", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk", exif(9), exif(6)[:20]]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # by Pillow, which looks for the resolution
def test_damaged_exif_data_turn_nothing(data, rgb, tmp_path):
    save(tmp_path / "a.jpg", rgb[0], exif=data)
    assert open_images(tmp_path).shape == (1, 28, 28, 3)
    assert open_images(tmp_path)[:].shape == (1, 28, 28, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGB", "P"])
def test_transparent_pixels_are_white(mode, rgb, tmp_path):
    picture = Image.fromarray(rgb[0])
    if mode in ("RGBA", "LA", "PA"):
        picture = picture.convert("RGBA")
        alpha = np.zeros((28, 28), np.uint8)
        alpha[:, 14:], alpha[:, 7:14] = 255, 128
        picture.putalpha(Image.fromarray(alpha))
        picture = picture.convert(mode) if mode != "PA" else picture
        save(tmp_path / "a.png", picture)
    elif mode == "RGB":
        save(tmp_path / "a.png", picture, transparency=tuple(map(int, rgb[0][0, 0])))
    else:
        save(tmp_path / "a.png", picture.quantize(8), transparency=0)
    image = open_images(tmp_path)[0].astype(int)
    with Image.open(tmp_path / "a.png") as opened:
        rgba = np.asarray(opened.convert("RGBA")).astype(int)
    blended = (rgba[..., :3] * rgba[..., 3:] + 255 * (255 - rgba[..., 3:])) / 255
    assert (rgba[..., 3] == 0).any()
    assert (image[rgba[..., 3] == 0] == 255).all()
    assert np.abs(image - blended).max() <= 1


# Size.


@pytest.fixture
def large(tmp_path):
    """A PNG of 14 000 x 14 000 pixels, of which only the header is right."""
    picture = io.BytesIO()
    Image.new("1", (8, 8)).save(picture, "PNG")
    data = bytearray(picture.getvalue())
    import zlib

    data[16:24] = struct.pack(">II", 14_000, 14_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(data)
    return tmp_path / "set"


@pytest.mark.filterwarnings("ignore:Image size")  # by Pillow, from half of its limit on
def test_a_large_picture_is_not_called_damaged(large, refused):
    before = Image.MAX_IMAGE_PIXELS
    for options in ({}, {"skip_bad": True}, {"max_pixels": 195_999_999}):
        with refused("a.png", "is too large (196,000,000 pixels)", "max_pixels=196000000"):
            open_images(large, **options)
    (large / "a.png").write_bytes((large / "a.png").read_bytes() + bytes(20_000))
    assert open_images(large, max_pixels=196_000_000, resize=8).shape == (1, 8, 8, 1)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_header_that_announces_too_many_pixels_is_damage(tmp_path, gray, refused):
    save(tmp_path / "a.png", gray[0])
    for name, header in (("b.ppm", b"P6 9000 9000 255\n"), ("c.tga", bytes([*[0] * 2, 2, *[0] * 9]))):
        header += struct.pack("<HHBB", 9000, 9000, 24, 0) if name == "c.tga" else b""
        (tmp_path / name).write_bytes(header + bytes(200))
        with refused(name, "announces 81,000,000 pixels in 2"):
            open_images(tmp_path)
        assert open_images(tmp_path, skip_bad=True).skipped == (name,)
        (tmp_path / name).unlink()
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    assert open_images(tmp_path, resize=4)[:].sum() == 0


def test_a_large_picture_is_read_when_it_is_allowed(gray, tmp_path, refused):
    save(tmp_path / "a.png", gray[0])
    with refused("a.png", "is too large (784 pixels)", "max_pixels=784"):
        open_images(tmp_path, max_pixels=783)
    np.testing.assert_array_equal(open_images(tmp_path, max_pixels=784)[0][..., 0], gray[0])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    with refused("a.png", "is too large"):
        open_images(tmp_path / "a.zip", max_pixels=100)
    with refused("max_pixels", "must be a whole number"):
        open_images(tmp_path, max_pixels="many")
    np.save(tmp_path / "a.npy", gray)
    with refused("a.npy", "leave out max_pixels"):
        open_images(tmp_path / "a.npy", max_pixels=100)
