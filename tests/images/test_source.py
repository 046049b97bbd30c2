import numpy as np
import pytest
import torch

from patchindex.errors import InputError
from patchindex.images import open_images


@pytest.fixture
def source(rgb, labels):
    return open_images(rgb, labels=labels)


def test_a_source_has_shape_name_and_labels(source, rgb, labels):
    assert source.shape == (20, 28, 28, 3)
    assert len(source) == 20
    assert source.name == "array"
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == labels.tolist()
    assert "20 images 28×28×3" in repr(source)


def test_floats_are_channels_first_in_the_range_of_all_functions(source, rgb):
    expected = rgb.transpose(0, 3, 1, 2) / 127.5 - 1
    for index in (slice(None), slice(3, 7), [7, 0, 7], np.arange(20) % 3 == 0, []):
        found = source.floats(index)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        rows = np.array(index, np.int64) if isinstance(index, list) else index
        np.testing.assert_allclose(found, expected[rows], rtol=0, atol=1e-6)  # float32
    assert torch.equal(source.floats(), source.floats(slice(None)))
    assert torch.equal(source.floats(4), source.floats([4]))
    with pytest.raises(InputError, match="there is no image 20; use ids from 0 to 19"):
        source.floats(20)


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(3, 7),
        slice(-4, None),
        slice(15, 99),
        slice(7, 3),
        [],
        [4],
        [7, 0, 7, 19],
        np.arange(20) % 3 == 0,
    ],
)
def test_read_indexes_as_numpy_does(source, rgb, index):
    images = source.read(index)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert images.shape[1:] == (28, 28, 3)
    expected = rgb[np.array(index, np.int64)] if isinstance(index, list) else rgb[index]
    np.testing.assert_array_equal(images, expected)


def test_read_returns_the_callers_own_array(source, rgb):
    before = rgb.copy()
    for index in (slice(None), np.arange(20)):
        images = source.read(index)
        images[:] = 0
    np.testing.assert_array_equal(rgb, before)
    assert images.flags.writeable


def test_brackets_and_asarray_are_numpy_indexing(source, rgb):
    np.testing.assert_array_equal(source[3], rgb[3])
    np.testing.assert_array_equal(source[-1], rgb[-1])
    np.testing.assert_array_equal(source[np.int64(2)], rgb[2])
    np.testing.assert_array_equal(source[2:8], rgb[2:8])
    np.testing.assert_array_equal(source[::-3], rgb[::-3])
    np.testing.assert_array_equal(source[[5, 1]], rgb[[5, 1]])
    np.testing.assert_array_equal(np.asarray(source), rgb)
    assert np.asarray(source, dtype=np.float32).dtype == np.float32
    assert len(list(source)) == 20
    with pytest.raises(IndexError, match="array"):
        source[20]


@pytest.mark.parametrize("index", [[20], [-1], slice(0, 9, 2), [0.5], [[1, 2]], np.ones(19, bool)])
def test_bad_indices_are_refused(source, index, refused):
    with refused("array"):
        source.read(index)
    with refused("size"):
        next(source.chunks(0))


@pytest.mark.parametrize("size", [1, 7, 20, 100])
def test_chunks_cover_everything_once_in_order(source, rgb, size):
    starts, parts = zip(*source.chunks(size), strict=True)
    assert starts == tuple(range(0, 20, size))
    np.testing.assert_array_equal(np.concatenate(parts), rgb)


@pytest.mark.parametrize("which", [5, slice(3, 9), [7, 0, 7, 19], np.arange(20) % 3 == 0])
def test_subset_is_numpy_indexing(source, rgb, labels, which):
    index = slice(0, which) if isinstance(which, int) else which
    subset = source.subset(which)
    np.testing.assert_array_equal(subset[:], rgb[index])
    np.testing.assert_array_equal(subset[[2, 0, 2]], rgb[index][[2, 0, 2]])
    np.testing.assert_array_equal(subset[1:3], rgb[index][1:3])
    np.testing.assert_array_equal(subset.labels, labels[index])
    np.testing.assert_array_equal(subset.subset([3, 1])[:], rgb[index][[3, 1]])
    assert subset.name == source.name


def test_subset_of_everything_is_the_source(source, rgb):
    assert source.subset(20) is source
    assert source.subset(10**9) is source
    assert open_images(rgb).subset(3).labels is None


@pytest.mark.parametrize("which", [0, -1, [], slice(4, 4), [20], np.zeros(20, bool)])
def test_empty_and_outside_subsets_are_refused(source, which, refused):
    with refused("array"):
        source.subset(which)
