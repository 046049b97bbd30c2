import os
import resource
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from patchindex.images import open_images


def write(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.h5"


def test_a_dataset_is_chosen_by_name(path, gray, rgb, labels):
    write(path, train__x=rgb, test__x=gray, train__labels=labels)
    for source in (open_images(path, dataset="train/x"), open_images(f"{path}::train/x")):
        np.testing.assert_array_equal(source[:], rgb)
        np.testing.assert_array_equal(source.labels, labels)
        assert source.name == f"{path}::train/x"
    assert open_images(f"{path}::test/x").labels is None


def test_the_only_dataset_of_images_is_taken(path, gray, labels):
    write(path, train__x=gray, train__y=labels, mean=np.zeros((28, 28)))
    np.testing.assert_array_equal(open_images(path)[:][..., 0], gray)


def test_a_dataset_with_a_name_that_is_not_utf8_is_refused(path, gray, refused):
    with h5py.File(path, "w") as file:
        file[b"im\xffges"] = gray
    with refused("not UTF-8", "set.h5", "rename it"):
        open_images(path)


def test_images_is_taken_before_other_datasets(path, gray, rgb):
    write(path, other=rgb, images=gray)
    np.testing.assert_array_equal(open_images(path)[:][..., 0], gray)


def test_an_unclear_choice_lists_the_candidates(path, gray, rgb, labels, refused):
    write(path, train__x=rgb, test__x=gray, y=labels)
    with refused(path, "train/x (20, 28, 28, 3)", "test/x (20, 28, 28)", "::path/in/file"):
        open_images(path)
    for name in ("valid/x", "train", "y/x"):
        with refused(path, f"no dataset {name}", "train/x"):
            open_images(path, dataset=name)
    with refused("dataset", "must be a name, got 3"):
        open_images(path, dataset=3)
    with refused(path, "dtype int64"):
        open_images(path, dataset="y")
    write(path, y=labels, nothing=h5py.Empty("f4"))
    with refused(path, "none"):
        open_images(path)
    with refused(path, "shape ()"):
        open_images(path, dataset="nothing")


@pytest.mark.parametrize("damaged", ["images", "labels"])
def test_damaged_chunks_are_refused(path, gray, labels, damaged, refused):
    with h5py.File(path, "w") as file:
        for name, data in (("images", gray), ("labels", labels)):
            file.create_dataset(name, data=data, chunks=data.shape, fletcher32=True)
        offset = file[damaged].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset] ^= 255
    path.write_bytes(data)
    if damaged == "labels":
        np.testing.assert_array_equal(open_images(path, labels=labels).labels, labels)
    with refused(path, "labels cannot be read" if damaged == "labels" else "images 0 to 19 cannot be read"):
        open_images(path)[:]


@pytest.fixture
def many_files(tmp_path, fashion):
    """A pattern of 100 files of one image each."""
    for i in range(100):
        write(tmp_path / f"part-{i:03}.h5", images=fashion[0][i : i + 1], labels=fashion[1][i : i + 1])
    return str(tmp_path / "part-*.h5")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors as Linux lists them")
def test_no_file_stays_open(many_files, fashion):
    source = open_images(many_files)
    np.testing.assert_array_equal(source.labels, fashion[1][:100])
    np.testing.assert_array_equal(source[:][..., 0], fashion[0][:100])
    assert not any(".h5" in str(fd.resolve()) for fd in Path("/proc/self/fd").iterdir())


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_files_are_read_by_several_threads_and_processes(many_files, fashion):
    source = open_images(many_files)
    orders = [np.random.default_rng(i).permutation(100) for i in range(20)]
    with ThreadPoolExecutor(4) as threads, ProcessPoolExecutor(2, get_context("fork")) as processes:
        for pool in (processes, threads):
            for ids, images in zip(orders, pool.map(source.read, orders), strict=True):
                np.testing.assert_array_equal(images[..., 0], fashion[0][ids])


def test_too_many_open_files_are_named_as_the_cause(path, gray, refused):
    write(path, images=gray)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            others.extend(path.open("rb") for _ in range(256))
        with refused(path, "cannot be read (Too many open files)", "ulimit -n"):
            open_images(path)
    finally:
        for file in others:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(open_images(path)) == 20


def test_changed_files_are_refused(tmp_path, gray, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    write("a.h5", images=gray)
    source = open_images("a.h5")
    monkeypatch.chdir(os.sep)
    np.testing.assert_array_equal(source[:][..., 0], gray)
    write(tmp_path / "a.h5", images=gray[:3])
    with refused("a.h5", "has changed since it was opened"):
        source.read([15])
    (tmp_path / "a.h5").unlink()
    with refused("a.h5", "is not there"):
        source.read([1])
