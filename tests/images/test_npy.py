import numpy as np
import pytest

from patchindex.images import open_images
from patchindex.images.npz import read_array


def test_round_trip(tmp_path, rgb, gray):
    path = tmp_path / "set.npy"
    for images in (rgb, gray[..., None], np.asfortranarray(rgb)):
        np.save(path, images)
        source = open_images(path)
        np.testing.assert_array_equal(source[:], images)
        np.testing.assert_array_equal(source[[3, 1, 3]], images[[3, 1, 3]])
        assert source.name == str(path)
        assert source.labels is None


def test_images_are_mapped_and_not_loaded(tmp_path, rgb):
    path = tmp_path / "set.npy"
    np.save(path, rgb)
    assert isinstance(read_array(path), np.memmap)
    source = open_images(path)
    # What is written to the file after opening is seen: nothing was read before.
    mapped = np.load(path, mmap_mode="r+")
    mapped[5] = 77
    mapped.flush()
    assert (source[5] == 77).all()
    source[5][:] = 1
    assert (source[5] == 77).all()


def test_float_files_stay_lazy_and_read_as_uint8(tmp_path, rgb):
    path = tmp_path / "set.npy"
    np.save(path, (rgb / 127.5 - 1).astype(np.float32))
    np.testing.assert_array_equal(open_images(path)[4:9], rgb[4:9])


@pytest.mark.parametrize("size", [0, 5, 60, 130, 1000])
def test_truncated_files(tmp_path, rgb, size, refused):
    path = tmp_path / "set.npy"
    np.save(path, rgb)
    path.write_bytes(path.read_bytes()[:size])
    with refused(path, "not a readable .npy", "np.save"):
        open_images(path)


def test_another_kind_of_file(tmp_path, gray, refused):
    path = tmp_path / "set.npy"
    with path.open("wb") as file:
        np.savez(file, images=gray)
    with refused(path, "not a readable .npy"):
        open_images(path)


def test_objects_are_never_unpickled(tmp_path, refused):
    path = tmp_path / "set.npy"
    np.save(path, np.empty(3, object), allow_pickle=True)
    with refused(path, "Python objects", "uint8"):
        open_images(path)


def test_no_images(tmp_path, refused):
    path = tmp_path / "set.npy"
    np.save(path, np.empty((0, 8, 8), np.uint8))
    with refused(path):
        open_images(path)
