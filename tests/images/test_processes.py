"""Sources in other processes: pickled, or forked."""

import pickle
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
import zarr

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


def test_a_zip_is_read_by_forked_processes(sources, gray, recwarn):
    source = sources("a.zip")
    orders = [np.random.default_rng(i).permutation(20) for i in range(60)]
    with ProcessPoolExecutor(4, get_context("fork")) as processes:
        for ids, images in zip(orders, processes.map(source.read, orders), strict=True):
            np.testing.assert_array_equal(images[..., 0], gray[ids])
    np.testing.assert_array_equal(source[:][..., 0], gray)


def test_a_zip_that_changed_is_refused_by_a_new_process(sources, tmp_path):
    source = sources("a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("more.txt", "x")
    with ProcessPoolExecutor(1, get_context("fork")) as processes:
        error = processes.submit(source.read, [0]).exception()
    assert "has changed since it was opened" in str(error)
