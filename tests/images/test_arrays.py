import numpy as np
import pytest
import torch

from patchindex.images.arrays import ArraySource
from patchindex.images.by_label import TrainingImages
from patchindex.images.concat import ConcatSource

ALL_LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
FLOATS = [np.float16, np.float32, np.float64]


def as_floats(images, dtype, span):
    """Scale images in one dtype throughout, as users do."""
    x = images.astype(dtype) / dtype(255)
    return x if span == "unit" else x * dtype(2) - dtype(1)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_uint8_arrays_are_kept(gray, rgb, channels):
    array = {None: gray, 1: gray[..., None], 3: rgb}[channels]
    source = ArraySource(array)
    assert source.shape == (20, 28, 28, channels or 1)
    np.testing.assert_array_equal(source[:].reshape(array.shape), array)


def test_memory_order_does_not_matter(rgb):
    for array in (np.asfortranarray(rgb), rgb[:, ::-1], rgb[::-2], rgb.transpose(0, 2, 1, 3)):
        source = ArraySource(array)
        for images in (source[:], source.read(np.arange(len(array)))):
            assert images.flags.c_contiguous
            np.testing.assert_array_equal(images, array)


def test_lists_and_tensors_are_read(rgb):
    x = torch.from_numpy(rgb).float().div(255).sub(0.5).div(0.5)
    for images in (list(rgb), torch.from_numpy(rgb), x):
        np.testing.assert_array_equal(ArraySource(images)[:], rgb)


@pytest.mark.parametrize("span", ["unit", "signed"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_scaled_images_round_trip_in_every_dtype(span, dtype, rgb):
    for images in (ALL_LEVELS, rgb):
        source = ArraySource(as_floats(images, dtype, span))
        np.testing.assert_array_equal(source[:].reshape(images.shape), images)
        np.testing.assert_array_equal(source[[2, 0]].reshape(-1), images[[2, 0]].reshape(-1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_way_to_scale_is_understood(dtype):
    levels = ALL_LEVELS.astype(dtype)
    for x in (
        levels / dtype(127.5) - dtype(1),
        levels * dtype(2 / 255) - dtype(1),
        (levels / dtype(255) - dtype(0.5)) / dtype(0.5),
        levels * dtype(1 / 255),
        (levels / dtype(255)).astype(np.dtype(dtype).newbyteorder(">")),
    ):
        np.testing.assert_array_equal(ArraySource(x)[:][..., 0], ALL_LEVELS)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("span", "words"), [("unit", "(x * 255).round()"), ("signed", "((x + 1) * 127.5).round()")]
)
def test_floats_between_levels_are_refused(dtype, span, words, refused):
    x = as_floats(ALL_LEVELS, dtype, span)
    x[2, 3, 3] += dtype(0.4 / (255 if span == "unit" else 127.5))
    with refused("set.npy", "image 2 ", words):
        ArraySource(x, name="set.npy")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_image_that_is_not_finite_is_named(bad, refused):
    x = as_floats(ALL_LEVELS, np.float32, "unit")
    x[3, 0, 0] = x[1, 7, 7] = bad
    with refused("array", "image 1 "):
        ArraySource(x)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0, 255, "x.round().astype(np.uint8)"), (0, 1.5, "1.5"), (-1.25, 1, "-1.25"), (-2.0, 1e308, "scale")],
)
def test_other_ranges_are_refused(low, high, words, refused):
    with refused("array", "neither in [0, 1] nor in [-1, 1]", words):
        ArraySource(np.array([low, high], float).reshape(2, 1, 1))


def test_the_range_is_that_of_all_images(refused):
    """The check reads four million values at a time; these are five, of which only the last are negative."""
    images = np.concatenate([np.full((20_000, 8, 32), 255, np.uint8), np.zeros((1, 8, 32), np.uint8)])
    x = as_floats(images, np.float32, "signed")
    np.testing.assert_array_equal(ArraySource(x).read([0, 20_000])[..., 0], images[[0, 20_000]])
    for bad in (0.003, np.nan):
        x[20_000, 7, 7] = bad
        with refused("image 20000 "):
            ArraySource(x)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (np.int64, "x.astype(np.uint8)"),
        (np.uint16, "x.astype(np.uint8)"),
        (bool, "* 255"),
        (np.complex64, "uint8"),
        (object, "never loaded"),
        (np.longdouble, "uint8"),
        ("S4", "uint8"),
    ],
)
def test_other_dtypes_are_refused(dtype, words, refused):
    array = np.zeros((2, 4, 4), dtype)
    with refused("set.npy", str(array.dtype), words):
        ArraySource(array, name="set.npy")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((5, 3, 32, 32), "x.transpose(0, 2, 3, 1)"),
        ((5, 1, 28, 28), "x.transpose(0, 2, 3, 1)"),
        ((5, 8, 8, 4), "alpha"),
        ((5, 8, 8, 2), "1 or 3 channels"),
        ((5, 784), "reshape"),
        ((), "reshape"),
        ((1, 5, 8, 8, 3), "reshape"),
        ((0, 8, 8), "no images"),
        ((5, 0, 8), "0×8"),
        ((5, 8, 0, 3), "8×0"),
    ],
)
def test_other_shapes_are_refused(shape, words, refused):
    with refused("set.npy", words):
        ArraySource(np.zeros(shape, np.uint8), name="set.npy")


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [3]],
        torch.zeros(2, 4, 4, requires_grad=True),
        torch.zeros(2, 4, 4, dtype=torch.bfloat16),
        None,
        3,
        object(),
    ],
    ids=["lists of different lengths", "with gradient", "bfloat16", "None", "number", "object"],
)
def test_other_objects_are_refused(value, refused):
    with refused("array"):
        ArraySource(value)


class Storage:
    """An array in storage chunks of 5 images that records the slices it was asked for."""

    def __init__(self, array):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype
        self.chunks, self.slices, self.damaged = (5, *array.shape[1:]), [], False

    def __getitem__(self, index):
        if self.damaged:
            raise OSError("checksum mismatch\nin chunk 0")
        self.slices.append((index.start, index.stop))
        return self._array[index]


@pytest.mark.parametrize(
    "make",
    [
        lambda source: source,
        lambda source: source.subset(18),
        lambda source: source.subset(slice(5, 19)),
        lambda source: ConcatSource([source.subset(10), source.subset(slice(10, 18))]),
    ],
    ids=["all", "the first", "from the end of a chunk", "joined"],
)
def test_blocks_end_at_the_ends_of_storage_chunks(rgb, make):
    storage = Storage(rgb)
    source = make(ArraySource(storage, name="set.zarr"))
    blocks = list(TrainingImages(source).blocks(0, len(source), most=7, multiple=2))
    np.testing.assert_array_equal(np.concatenate(blocks), source[:])
    assert all(start // 5 == (stop - 1) // 5 for start, stop in storage.slices[: len(blocks)])
    assert source.packed


def test_chunks_that_begin_elsewhere_do_not_end_blocks(rgb):
    source = ArraySource(Storage(rgb), name="set.zarr")
    for other in (
        source.subset(slice(3, 19)),
        source.subset([7, 2, 9]),
        ConcatSource([source.subset(8)] * 2),
    ):
        assert (other.chunk, other.packed) == (1, True)
    plain = ArraySource(rgb).subset(3)
    assert (plain.chunk, plain.packed) == (1, False)


def test_each_storage_chunk_is_read_once(rgb, refused):
    storage = Storage(rgb)
    source = ArraySource(storage, name="set.zarr")
    assert storage.slices == []
    ids = [19, 3, 1, 3, 16, 12]
    np.testing.assert_array_equal(source.read(ids), rgb[ids])
    assert storage.slices == [(1, 4), (12, 13), (16, 20)]
    storage.damaged = True
    with refused("set.zarr", "images 2 to 3", "checksum mismatch"):
        source.read(slice(2, 4))
