"""One reading of the floats of all files of a source."""

import numpy as np
import pytest

from patchindex.images import open_images

LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
BRIGHT = LEVELS // 2 + 128


@pytest.fixture
def shards(tmp_path):
    """`shards(array, ...)` saves arrays as shard-0.npy, ..., and returns the pattern of their names."""

    def save(*arrays):
        for old in tmp_path.glob("shard-*.npy"):
            old.unlink()
        for i, array in enumerate(arrays):
            np.save(tmp_path / f"shard-{i}.npy", array)
        return str(tmp_path / "shard-*.npy")

    return save


def signed(images):
    return (images / 127.5 - 1).astype(np.float32)


def unit(images):
    return (images / 255).astype(np.float32)


@pytest.mark.parametrize("order", [1, -1])
def test_one_shard_decides_for_all(order, shards):
    """The bright shard has no value below 0."""
    for arrays in ([LEVELS, BRIGHT], [BRIGHT, LEVELS, BRIGHT]):
        source = open_images(shards(*map(signed, arrays[::order])))
        np.testing.assert_array_equal(source[:][..., 0], np.concatenate(arrays[::order]))
    odd = LEVELS | 1  # both readings fit: 1/255 is 1 or 128
    source = open_images(shards(*map(unit, [odd, LEVELS][::order])))
    np.testing.assert_array_equal(source[:][..., 0], np.concatenate([odd, LEVELS][::order]))


def test_shards_of_two_ranges_are_refused(shards, refused):
    with refused("shard-1.npy", "scaled to [0, 1], but", "shard-0.npy to [-1, 1]"):
        open_images(shards(signed(LEVELS), unit(LEVELS)))


def test_two_readings_are_refused_until_one_is_chosen(shards, refused):
    with refused("shard-0.npy", "both readings fit", "values='unit' or values='signed'"):
        open_images(shards(signed(BRIGHT)))
    with refused("shard-0.npy", "both readings fit"):
        open_images(shards(signed(BRIGHT), signed(BRIGHT)))
    for values in ("signed", "unit"):
        source = open_images(shards(signed(BRIGHT), signed(BRIGHT)), values=values)
        expected = BRIGHT if values == "signed" else BRIGHT.astype(int) * 2 - 255
        np.testing.assert_array_equal(source[:4][..., 0], expected)


def test_white_is_white_by_both_readings():
    assert (open_images(np.ones((3, 4, 4), np.float32))[:] == 255).all()


def test_a_choice_that_does_not_fit_is_refused(shards, refused):
    with refused("shard-0.npy", "values below 0 (-1)", "values='signed'"):
        open_images(shards(signed(LEVELS)), values="unit")
    with refused("shard-0.npy", "image 0 is not exactly", "[-1, 1]"):
        open_images(shards(unit(LEVELS)), values="signed")
    with refused("array", "images are not floats", "leave out values"):
        open_images(LEVELS, values="unit")
    with refused("values", "there is no 'Unit'", "unit, signed"):
        open_images(LEVELS, values="Unit")
    with refused("values", "there is no ['unit']", "unit, signed"):
        open_images(LEVELS, values=["unit"])


def test_bytes_and_floats_are_one_source(shards):
    source = open_images(shards(LEVELS, signed(LEVELS), signed(BRIGHT)), limit=10, grayscale=True)
    np.testing.assert_array_equal(source[:][..., 0], np.concatenate([LEVELS, LEVELS, BRIGHT])[:10])
