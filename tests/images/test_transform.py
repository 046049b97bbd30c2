import numpy as np
import pytest
from PIL import Image

from patchindex.images import open_images
from patchindex.images.transform import Transform


@pytest.mark.parametrize(
    ("crop", "rows", "cols"), [(20, slice(4, 24), slice(4, 24)), ((9, 28), slice(9, 18), slice(0, 28))]
)
def test_crop_is_central(rgb, gray, crop, rows, cols):
    for images in (rgb, gray[..., None]):
        np.testing.assert_array_equal(open_images(images, crop=crop)[:], images[:, rows, cols])


def test_a_square_crop_is_as_large_as_the_shorter_side(rgb):
    for wide in (rgb[:, :21], rgb[:, :20]):  # odd and even margins
        side = wide.shape[1]
        inner = slice((28 - side) // 2, (28 - side) // 2 + side)
        for images, expected in (
            (wide, wide[:, :, inner]),
            (wide.swapaxes(1, 2), wide.swapaxes(1, 2)[:, inner]),
        ):
            square = open_images(np.ascontiguousarray(images), crop="square")
            assert square.shape == (20, side, side, 3)
            np.testing.assert_array_equal(square[:], expected)


def test_images_of_any_size_fit_after_a_square_crop_and_a_resize(rgb, tmp_path, write_pictures):
    pictures = [rgb[0], rgb[1, :, :20], rgb[2, :9]]
    source = open_images(write_pictures(tmp_path, pictures), crop="square", resize=8)
    assert source.shape == (3, 8, 8, 3)
    for i, image in enumerate([rgb[0], rgb[1, 4:24, :20], rgb[2, :9, 9:18]]):
        np.testing.assert_array_equal(source[i], open_images(image[None], resize=8)[0])


def test_crop_comes_before_resize(rgb):
    expected = open_images(np.ascontiguousarray(rgb[:, 4:24, 4:24]), resize=(10, 12))[:]
    both = open_images(rgb, crop=20, resize=(10, 12))
    assert both.shape == (20, 10, 12, 3)
    np.testing.assert_array_equal(both[:], expected)


def test_resize_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (1, 64, 32))
    small = open_images(stripes, resize=16)[0]
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127.5).max() < 10


def test_resize_to_the_same_size_changes_nothing(rgb):
    np.testing.assert_array_equal(open_images(rgb, resize=28)[:], rgb)


def test_grayscale_is_the_luma(rgb, gray):
    source = open_images(rgb, grayscale=True)
    assert source.shape == (20, 28, 28, 1)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(source[:][..., 0] - luma).max() <= 1
    np.testing.assert_array_equal(open_images(gray, grayscale=True)[:][..., 0], gray)


def test_labels_are_kept_and_reads_are_independent_of_order(rgb, labels):
    source = open_images(rgb, labels=labels, resize=14)
    np.testing.assert_array_equal(source.labels, labels)
    ids = [7, 0, 7]
    np.testing.assert_array_equal(source.read(ids), source[:][ids])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_mode_is_converted(mode, rgb):
    image = Image.fromarray(rgb[0]).convert(mode)
    for target, channels in (("RGB", 3), ("L", 1)):
        pixels = Transform(crop=(10, 12), resize=(5, 6)).apply(image, target)
        assert pixels.shape == (5, 6, channels)
        assert pixels.dtype == np.uint8


@pytest.mark.parametrize("value", [0, -3, (4, 0), (1, 2, 3), (4,), 2.5, "28", "round", (2.0, 2.0)])
def test_bad_sizes_are_refused(value, refused, rgb):
    with refused("resize", "pixels"):
        Transform.parse(None, value, False)
    with refused("crop"):
        open_images(rgb, crop=value)


def test_a_resize_cannot_be_square(rgb, refused):
    with refused("resize", "'square' is not a size in pixels"):
        open_images(rgb, resize="square")


def test_a_crop_that_does_not_fit_is_refused(rgb, refused):
    for crop in (29, (28, 29)):
        with refused("array", "28×28", "a smaller crop"):
            open_images(rgb, crop=crop)
