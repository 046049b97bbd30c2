import io
import zipfile

import numpy as np
import pytest

from patchindex.images import open_images
from patchindex.images.formats.npz import read_array


def test_npy_files_are_mapped_in_any_memory_order(tmp_path, rgb):
    for images in (rgb, np.asfortranarray(rgb)):
        np.save(tmp_path / "set.npy", images)
        assert isinstance(read_array(tmp_path / "set.npy"), np.memmap)
        np.testing.assert_array_equal(open_images(tmp_path / "set.npy")[:], images)


def test_what_is_read_is_a_copy_of_the_file(tmp_path, rgb):
    np.save(tmp_path / "set.npy", rgb)
    source = open_images(tmp_path / "set.npy")
    source[5][:] = 1
    np.testing.assert_array_equal(source[5], rgb[5])


def test_an_npz_called_npy_is_refused(tmp_path, gray, refused):
    with (tmp_path / "set.npy").open("wb") as file:
        np.savez(file, images=gray)
    with refused(tmp_path / "set.npy", "not a readable .npy", "np.save"):
        open_images(tmp_path / "set.npy")


def test_an_npz_without_images_lists_its_keys(tmp_path, gray, refused):
    np.savez(tmp_path / "set.npz", x_train=gray, y_train=gray)
    with refused(tmp_path / "set.npz", "x_train, y_train", "np.savez(file, images="):
        open_images(tmp_path / "set.npz")


@pytest.mark.parametrize("size", [1000, 20, 0])
def test_a_truncated_array_inside_a_whole_zip_is_refused(tmp_path, gray, size, refused):
    buffer = io.BytesIO()
    np.save(buffer, gray)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", buffer.getvalue()[:size])
    with refused(tmp_path / "set.npz"):
        open_images(tmp_path / "set.npz")
