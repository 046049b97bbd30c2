"""Sources in other processes: pickled, or forked."""

import pickle
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from patchindex.images import open_images


@pytest.fixture
def sources(tmp_path, gray, rgb, write_pictures):
    """`sources(name)` opens the images `gray` in a format."""

    def make(name):
        path = tmp_path / name
        if name == "a.h5":
            with h5py.File(path, "w") as file:
                file["images"] = gray
        elif name == "a.zarr":
            zarr.create_array(str(path), data=gray)
        elif name == "a.npy":
            np.save(path, gray)
        elif name == "a.npz":
            np.savez(path, images=gray)
        else:
            write_pictures(tmp_path / "folder", gray)
        if name == "a.zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted((tmp_path / "folder").iterdir()):
                    archive.write(file, file.name)
        return open_images(path, labels=np.arange(20))

    return make


@pytest.mark.parametrize("name", ["a.h5", "a.zarr", "a.npy", "a.npz", "folder", "a.zip"])
def test_a_pickled_source_opens_its_file_again(name, sources, gray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = sources(name)
    monkeypatch.chdir("/")
    data = pickle.dumps(source.subset(slice(3, 9)))
    assert len(data) < 6000 or name == "a.npz", "the images are in the pickle"
    again = pickle.loads(data)
    np.testing.assert_array_equal(again[:][..., 0], gray[3:9])
    assert again.labels.tolist() == list(range(3, 9))


def test_the_map_of_a_temporary_file_is_pickled_with_its_images(gray):
    with tempfile.TemporaryFile() as file:
        images = np.memmap(file, np.uint8, "w+", shape=gray.shape)
        images[:] = gray
        again = pickle.loads(pickle.dumps(open_images(images)))
    np.testing.assert_array_equal(again[:][..., 0], gray)


forked = None  # the source that forked processes inherit


def read_inherited(ids):
    return forked.read(ids)


@pytest.mark.parametrize("name", ["a.h5", "a.zarr", "a.npy", "folder", "a.zip"])
def test_forked_processes_read_a_source_that_was_used_before(name, sources, gray, recwarn, monkeypatch):
    source = sources(name)
    np.testing.assert_array_equal(source[:][..., 0], gray)
    monkeypatch.setattr("test_processes.forked", source)
    orders = [np.random.default_rng(i).permutation(20) for i in range(40)]
    with ProcessPoolExecutor(4, get_context("fork")) as processes:
        for ids, images in zip(orders, processes.map(read_inherited, orders, timeout=60), strict=True):
            np.testing.assert_array_equal(images[..., 0], gray[ids])
    np.testing.assert_array_equal(source[:][..., 0], gray)


class Pictures:
    """A data set of Pillow images with labels."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i]), i


def test_a_data_set_is_pickled_with_its_items(gray):
    again = pickle.loads(pickle.dumps(open_images(Pictures(gray))))
    np.testing.assert_array_equal(again[:][..., 0], gray)
    assert again.labels.tolist() == list(range(20))


def test_an_open_dataset_of_hdf5_is_not_pickled(tmp_path, gray, refused):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = gray
        source = open_images(file["images"])
        np.testing.assert_array_equal(source[:][..., 0], gray)
        with refused("array", "cannot be given to another process", "FILE.h5::path/in/file"):
            pickle.dumps(source)


def test_a_zip_that_changed_is_refused_by_a_new_process(sources, tmp_path):
    source = sources("a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("more.txt", "x")
    with ProcessPoolExecutor(1, get_context("fork")) as processes:
        error = processes.submit(source.read, [0]).exception()
    assert "has changed since it was opened" in str(error)
