"""The order of the axes of arrays and of items of data sets."""

import h5py
import numpy as np
import pytest
import torch

from patchindex.images import open_images
from patchindex.images.axes import AXES


@pytest.fixture
def colour(rgb):
    """Images (20, 3, 8, 3), which may be three pixels high or three wide."""
    return np.ascontiguousarray(rgb[:, 10:13, 10:18])


@pytest.mark.parametrize("shape", [(20, 24, 3), (20, 24, 1), (20, 1, 3)])
def test_one_colour_image_and_many_gray_images_are_told_apart(shape, tmp_path, refused):
    array = np.arange(np.prod(shape), dtype=np.uint64).astype(np.uint8).reshape(shape)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy"):
        with refused("may be (N, H, W) or (H, W, C)", "axes='NHW' or axes='HWC'"):
            open_images(source)
        many = open_images(source, axes="NHW")
        np.testing.assert_array_equal(many[:], array[..., None])
        one = open_images(source, axes="HWC")
        np.testing.assert_array_equal(one[:], array[None])


def test_channels_first_and_last_are_told_apart(colour, tmp_path, refused):
    np.savez(tmp_path / "a.npz", images=colour)
    with refused("a.npz", "may be (N, H, W, C) or (N, C, H, W)"):
        open_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(open_images(tmp_path / "a.npz", axes="NHWC")[:], colour)
    first = open_images(tmp_path / "a.npz", axes="NCHW")
    assert first.shape == (20, 8, 3, 3)
    np.testing.assert_array_equal(first[:], colour.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("name", ["a.npy", "a.h5"])
def test_axes_are_those_of_every_format(name, tmp_path, rgb, gray):
    def write(array):
        if name == "a.npy":
            np.save(tmp_path / name, array)
        else:
            with h5py.File(tmp_path / name, "w") as file:
                file["images"] = array
        return tmp_path / name

    for axes, array, expected in (
        ("NHW", gray, gray[..., None]),
        ("NHWC", rgb, rgb),
        ("NCHW", rgb.transpose(0, 3, 1, 2), rgb),
        ("HW", gray[3], gray[3][None, ..., None]),
        ("HWC", rgb[3], rgb[3:4]),
        ("CHW", rgb[3].transpose(2, 0, 1), rgb[3:4]),
    ):
        source = open_images(write(array), axes=axes)
        np.testing.assert_array_equal(source[:], expected)
        np.testing.assert_array_equal(source.read([0]), expected[:1])
    floats = open_images(write(rgb.transpose(0, 3, 1, 2) / 255), axes="NCHW", resize=14)
    np.testing.assert_array_equal(floats[:], open_images(rgb, resize=14)[:])


def test_one_pixel_is_not_ambiguous(gray):
    pixels = gray[:, 14:15, 14:15]
    np.testing.assert_array_equal(open_images(pixels)[:], pixels[..., None])
    np.testing.assert_array_equal(open_images(pixels[..., None])[:], pixels[..., None])


def test_other_axes_are_refused(gray, rgb, tmp_path, refused):
    with refused("axes", "there is no 'NHCW'", *AXES):
        open_images(gray, axes="NHCW")
    with refused("array", "3 axes, not the 4 of NHWC"):
        open_images(gray, axes="NHWC")
    with refused("array", "28 channels"):
        open_images(rgb, axes="NCHW")
    with refused("axes", "open already"):
        open_images(open_images(gray), axes="NHW")
    with refused("array", "axes='HW' for one image"):
        open_images(gray[0])


def test_items_of_a_data_set_are_told_apart(colour, refused):
    tensors = [torch.from_numpy(image) for image in colour]

    class Items:
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return tensors[i]

    with refused("Items", "shape (3, 8, 3) of item 0 may be (H, W, C) or (C, H, W)", "axes="):
        open_images(Items())
    np.testing.assert_array_equal(open_images(Items(), axes="HWC")[:], colour)
    np.testing.assert_array_equal(open_images(Items(), axes="CHW")[:], colour.transpose(0, 2, 3, 1))
    with refused("axes", "no axes NHW"):
        open_images(Items(), axes="NHW")


def test_three_gray_images_and_one_tensor_in_a_file_are_told_apart(gray, tmp_path, refused):
    np.save(tmp_path / "a.npy", gray[:3])
    with refused("a.npy", "may be (N, H, W) or (C, H, W)", "axes='NHW' or axes='CHW'"):
        open_images(tmp_path / "a.npy")
    assert open_images(tmp_path / "a.npy", axes="NHW").shape == (3, 28, 28, 1)
    np.testing.assert_array_equal(open_images(tmp_path / "a.npy", axes="CHW")[0], gray[:3].transpose(1, 2, 0))
    assert open_images(gray[:3]).shape == (3, 28, 28, 1)  # in memory
    np.savez(tmp_path / "a.npz", images=gray[:3], labels=[5, 6, 7])  # as many labels as images
    assert open_images(tmp_path / "a.npz").shape == (3, 28, 28, 1)
    np.savez(tmp_path / "a.npz", images=gray[:3], labels=[5])
    with refused("a.npz", "may be (N, H, W) or (C, H, W)"):
        open_images(tmp_path / "a.npz")
