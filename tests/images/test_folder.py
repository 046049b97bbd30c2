import numpy as np
import pytest
from PIL import Image

from patchindex.images import open_images


def write(root, images, names=None, **kwargs):
    for i, image in enumerate(images):
        path = root / (names[i] if names else f"{i:03}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **kwargs)
    return root


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def test_rgb_round_trip(root, rgb):
    source = open_images(write(root, rgb))
    assert source.shape == rgb.shape
    np.testing.assert_array_equal(source[:], rgb)
    np.testing.assert_array_equal(source[[19, 0, 19]], rgb[[19, 0, 19]])
    np.testing.assert_array_equal(source.subset([4, 2])[:], rgb[[4, 2]])
    assert source.labels is None
    assert source.name == str(root)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".pgm", ".PNG"])
def test_gray_round_trip_in_every_lossless_format(root, gray, suffix):
    source = open_images(write(root, gray[:3], [f"{i}{suffix}" for i in range(3)]))
    assert source.shape == (3, 28, 28, 1)
    np.testing.assert_array_equal(source[:][..., 0], gray[:3])


def test_gifs_have_a_palette_so_they_are_colour(root, gray):
    source = open_images(write(root, gray[:3], ["0.gif", "1.gif", "2.gif"]))
    np.testing.assert_array_equal(source[:], np.repeat(gray[:3, ..., None], 3, axis=3))
    np.testing.assert_array_equal(open_images(root, grayscale=True)[:][..., 0], gray[:3])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".ppm"])
def test_colour_formats_are_decoded(root, rgb, suffix):
    smooth = np.asarray(Image.fromarray(rgb[0]).resize((56, 56)).resize((28, 28)))
    source = open_images(write(root, [smooth], [f"a{suffix}"]))
    assert source.shape == (1, 28, 28, 3)
    assert np.abs(source[0].astype(int) - smooth).mean() < 20


def test_recursive_sorted_by_relative_path_and_nothing_hidden(root, gray):
    names = ["b/1.png", "a/2.png", "a/10.png", "c.png", "a/deep/er/0.png"]
    write(root, gray[:5], names)
    write(root, gray[5:7], [".hidden/0.png", "a/._2.png"])
    (root / "notes.txt").write_text("no image")
    order = sorted(range(5), key=lambda i: names[i])
    np.testing.assert_array_equal(open_images(root)[:][..., 0], gray[order])


def test_linked_folders_are_followed(tmp_path, gray):
    write(tmp_path / "elsewhere", gray[:2])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    write(tmp_path / "set" / "dogs", gray[2:4])
    assert open_images(tmp_path / "set", labels="folders").label_names == ("cats", "dogs")


def test_labels_from_folders(root, gray):
    names = ["dog/1.png", "cat/1.png", "cat/deep/2.png", "ant/0.png"]
    source = open_images(write(root, gray[:4], names), labels="folders")
    assert source.label_names == ("ant", "cat", "dog")
    assert source.labels.tolist() == [0, 1, 1, 2]
    assert source.labels.dtype == np.int64
    assert source.subset([3]).label_names == ("ant", "cat", "dog")


def test_labels_from_folders_need_folders(root, gray, refused):
    write(root, gray[:2], ["cat/1.png", "loose.png"])
    with refused(root / "loose.png", "sub-folder", "labels=FILE"):
        open_images(root, labels="folders")


def test_labels_from_folders_inside_one(root, gray):
    """As an archive is unpacked, and with a folder more than that."""
    write(root, gray[:3], ["set/train/dog/1.png", "set/train/cat/1.png", "set/train/cat/deep/2.png"])
    for folder in (root, root / "set", root / "set" / "train"):
        source = open_images(folder, labels="folders")
        assert source.label_names == ("cat", "dog")
        assert source.labels.tolist() == [0, 0, 1]


def test_one_folder_is_one_label(root, gray):
    """As images of a new class come, that are appended."""
    write(root, gray[:3], ["cat/1.png", "cat/deep/2.png", "cat/deep/3.png"])
    assert open_images(root, labels="folders").label_names == ("cat",)
    write(root.parent / "more", gray[:1], ["dog/1.png"])
    source = open_images([root, root.parent / "more"], labels="folders")
    assert source.label_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1]


def test_labels_given(root, gray, labels):
    np.testing.assert_array_equal(open_images(write(root, gray), labels=labels).labels, labels)


def test_one_colour_image_makes_all_rgb(root, gray, rgb):
    write(root, [gray[0], rgb[0]])
    source = open_images(root)
    assert source.shape == (2, 28, 28, 3)
    np.testing.assert_array_equal(source[0], np.repeat(gray[0][..., None], 3, axis=2))
    np.testing.assert_array_equal(source[1], rgb[0])
    assert open_images(root, grayscale=True).shape == (2, 28, 28, 1)


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA"])
def test_other_modes(root, rgb, mode):
    root.mkdir()
    image = Image.fromarray(rgb[0]).convert(mode)
    image.save(root / "a.png")
    source = open_images(root)
    assert source.shape == (1, 28, 28, 1 if mode in ("1", "LA") else 3)
    if mode == "RGBA":
        np.testing.assert_array_equal(source[0], rgb[0])


def test_transparent_palettes(root, rgb):
    root.mkdir()
    image = Image.fromarray(rgb[0]).quantize(16)
    image.save(root / "a.png", transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(open_images(root)[0], np.asarray(image.convert("RGB")))


def test_more_than_8_bits_is_refused(root, gray, refused):
    root.mkdir()
    Image.fromarray(gray[0].astype(np.uint16) * 257).save(root / "deep.png")
    with refused(root / "deep.png", "8 bits", "convert"):
        open_images(root)


def test_sizes_that_differ(root, gray, refused):
    write(root, [gray[0], gray[1], gray[2][:20], gray[3][:10]])
    with refused(root / "002.png", "20×28", "28×28", "resize="):
        open_images(root)
    assert open_images(root, resize=16).shape == (4, 16, 16, 1)
    assert open_images(root, crop=(10, 28)).shape == (4, 10, 28, 1)
    with refused(root / "002.png", "a smaller crop"):
        open_images(root, crop=28)


def test_transforms_are_those_of_arrays(root, rgb):
    write(root, rgb)
    options = {"crop": (20, 24), "resize": (9, 11), "grayscale": True}
    np.testing.assert_array_equal(open_images(root, **options)[:], open_images(rgb, **options)[:])


def test_unreadable_files_at_open(root, gray, refused):
    write(root, gray[:3])
    for content in (b"", b"not an image"):
        (root / "001.png").write_bytes(content)
        with refused(root / "001.png", "not a readable image", "remove"):
            open_images(root)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".webp", ".tif", ".ppm"])
def test_files_that_break_after_their_header(root, rgb, suffix, refused):
    write(root, rgb[:2], [f"{i}{suffix}" for i in range(2)])
    path = root / f"1{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with refused(path, "not a readable image"):
        open_images(root)[:]


def test_files_are_decoded_when_asked_for(root, gray, refused):
    source = open_images(write(root, gray[:3]))
    Image.fromarray(gray[7]).save(root / "001.png")
    np.testing.assert_array_equal(source[1][..., 0], gray[7])
    Image.fromarray(gray[7][:20]).save(root / "001.png")
    with refused(root / "001.png", "another size"):
        source.read([1])
    (root / "001.png").unlink()
    with refused(root / "001.png"):
        source.read([1])


def test_empty_folders(root, refused):
    root.mkdir()
    (root / "notes.txt").write_text("no image")
    with refused(root, "no image files", ".png"):
        open_images(root)
