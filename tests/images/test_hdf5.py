import gc
import resource
import warnings
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


def test_round_trip_with_labels(tmp_path, rgb, labels):
    path = tmp_path / "set.h5"
    write(path, images=rgb, labels=labels)
    source = open_images(path)
    np.testing.assert_array_equal(source[:], rgb)
    np.testing.assert_array_equal(source[[19, 0, 19, 4]], rgb[[19, 0, 19, 4]])
    np.testing.assert_array_equal(source.labels, labels)
    assert source.name == str(path)


def test_chunked_and_compressed(tmp_path, rgb):
    path = tmp_path / "set.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=rgb, chunks=(3, 28, 28, 3), compression="gzip")
    ids = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(open_images(path).read(ids), rgb[ids])


def test_recognised_by_content(tmp_path, gray):
    write(tmp_path / "set.mat", images=gray)
    np.testing.assert_array_equal(open_images(tmp_path / "set.mat")[:][..., 0], gray)


def test_images_are_read_when_asked_for(tmp_path, gray, monkeypatch):
    path = tmp_path / "set.h5"
    write(path, images=gray)
    read = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, key: read.append(key) or original(self, key)
    )
    source = open_images(path)
    assert read == []
    assert len(source[3:5]) == 2
    assert read == [slice(3, 5)]


def test_a_dataset_is_chosen(tmp_path, gray, rgb, labels):
    path = tmp_path / "set.h5"
    write(path, train__x=rgb, test__x=gray, train__labels=labels)
    for source in (open_images(path, dataset="train/x"), open_images(f"{path}::train/x")):
        np.testing.assert_array_equal(source[:], rgb)
        np.testing.assert_array_equal(source.labels, labels)
        assert source.name == f"{path}::train/x"
    assert open_images(f"{path}::test/x").labels is None


def test_the_only_dataset_of_images_is_taken(tmp_path, gray, labels):
    path = tmp_path / "set.h5"
    write(path, train__x=gray, train__y=labels, mean=np.zeros((28, 28)))
    np.testing.assert_array_equal(open_images(path)[:][..., 0], gray)


def test_images_beats_other_datasets(tmp_path, gray, rgb):
    path = tmp_path / "set.h5"
    write(path, other=rgb, images=gray)
    np.testing.assert_array_equal(open_images(path)[:][..., 0], gray)


def test_labels_of_another_length_are_not_its_labels(tmp_path, gray):
    path = tmp_path / "set.h5"
    write(path, images=gray, labels=np.arange(7))
    assert open_images(path).labels is None


def test_unclear_choices_list_the_candidates(tmp_path, gray, rgb, labels, refused):
    path = tmp_path / "set.h5"
    write(path, train__x=rgb, test__x=gray, y=labels)
    with refused(path, "train/x (20, 28, 28, 3)", "test/x (20, 28, 28)", "::path/in/file"):
        open_images(path)
    for name in ("valid/x", "train", "y/x"):
        with refused(path, f"no dataset {name}", "train/x"):
            open_images(path, dataset=name)
    with refused(path, "dtype int64"):
        open_images(path, dataset="y")


def test_no_images_at_all(tmp_path, labels, refused):
    path = tmp_path / "set.h5"
    write(path, y=labels, nothing=h5py.Empty("f4"))
    with refused(path, "none"):
        open_images(path)


@pytest.mark.parametrize("content", [b"", b"text" * 100, None])
def test_damaged_files(tmp_path, gray, content, refused):
    path = tmp_path / "set.h5"
    write(path, images=gray)
    path.write_bytes(path.read_bytes()[:6000] if content is None else content)
    with refused(path, "not a readable HDF5 file"):
        open_images(path)


def test_damaged_chunks_are_found_when_read(tmp_path, rgb, refused):
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", data=rgb, chunks=(20, 28, 28, 3), fletcher32=True)
        offset = images.id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 100] ^= 255
    path.write_bytes(data)
    with refused(path, "cannot be read"):
        open_images(path)[:]


def test_the_file_closes_with_the_source_and_on_errors(tmp_path, gray, refused):
    path = tmp_path / "set.h5"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(path, images=gray)
        source = open_images(path)
        source[:]
        del source
        gc.collect()
        write(path, images=gray.astype(np.int32))  # h5py refuses to overwrite a file that is open
        with refused(path, "int32"):
            open_images(path)
        write(path, images=gray)


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
        for pool in (threads, processes):
            for ids, images in zip(orders, pool.map(source.read, orders), strict=True):
                np.testing.assert_array_equal(images[..., 0], fashion[0][ids])


def test_too_many_open_files_are_called_so(tmp_path, gray, refused):
    write(tmp_path / "set.h5", images=gray)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            others.extend((tmp_path / "set.h5").open("rb") for _ in range(256))
        with refused(tmp_path / "set.h5", "cannot be read (Too many open files)", "ulimit -n"):
            open_images(tmp_path / "set.h5")
    finally:
        for file in others:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(open_images(tmp_path / "set.h5")) == 20


def test_changed_files_are_refused(tmp_path, gray, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    write("a.h5", images=gray)
    source = open_images("a.h5")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(source[:][..., 0], gray)
    write(tmp_path / "a.h5", images=gray[:3])
    with refused("a.h5", "has changed since it was opened"):
        source.read([15])
    (tmp_path / "a.h5").unlink()
    with refused("a.h5", "No such file"):
        source.read([1])


def test_labels_that_are_damaged(tmp_path, gray, labels, refused):
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        file["images"] = gray
        stored = file.create_dataset("labels", data=labels, chunks=(20,), fletcher32=True)
        offset = stored.id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset] ^= 255
    path.write_bytes(data)
    with refused(path, "labels cannot be read"):
        open_images(path)
    np.testing.assert_array_equal(open_images(path, labels=labels).labels, labels)
