import inspect
import re
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from patchindex.errors import SourceNotFoundError
from patchindex.images import KNOWN_SETS, ImageOptions, open_images
from patchindex.images.format import Options

INSTALLED = KNOWN_SETS["fashion-mnist"][0].is_file()


def test_the_typed_options_are_those_of_open_images():
    options = set(inspect.signature(open_images).parameters) - {"source", "labels"}
    assert set(ImageOptions.__annotations__) == options


def test_the_example_of_the_docs_works(tmp_path, rgb, labels, refused):
    page = (Path(__file__).parents[2] / "docs" / "adding-an-image-format.md").read_text()
    module, test = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"np": np}
    exec(module + test.split("CASES")[0], names)
    names["write_raw"](tmp_path / "set.raw", rgb, labels)
    assert names["FORMAT"].matches(tmp_path / "set.raw")
    source = names["FORMAT"].open(tmp_path / "set.raw", Options())
    np.testing.assert_array_equal(source[:], rgb)
    np.testing.assert_array_equal(source.labels, labels)
    (tmp_path / "set.raw").write_bytes(b"12345")
    with refused("set.raw", "do not fit its header"):
        names["FORMAT"].open(tmp_path / "set.raw", Options())


def test_unknown_options_are_refused(gray):
    with pytest.raises(TypeError, match="resise"):
        open_images(gray, resise=32)


def test_an_open_source_is_returned_and_never_changed(gray, labels):
    source = open_images(gray)
    assert open_images(source) is source
    assert open_images(source, labels=labels).labels is not None
    assert source.labels is None
    assert open_images(source, limit=3).shape[0] == 3
    assert open_images(source, resize=7).shape == (20, 7, 7, 1)


def test_a_limit_takes_the_first_images(gray, labels, refused):
    assert open_images(gray, labels=labels, limit=1).labels.tolist() == [labels[0]]
    assert len(open_images(gray, limit=np.int64(7))) == 7
    assert len(open_images(gray, limit=10**6)) == 20
    for limit in (0, -4):
        with refused("limit", "must be at least 1"):
            open_images(gray, limit=limit)
    with refused("limit", "must be a whole number"):
        open_images(gray, limit=2.5)


@pytest.mark.parametrize("source", ["no/such/file.npz", "no-such-set", "", "file.h5::images"])
def test_missing_sources_are_refused(tmp_path, monkeypatch, source, refused):
    monkeypatch.chdir(tmp_path)
    with refused(source, "no such file or folder", "fashion-mnist", error=SourceNotFoundError):
        open_images(source)
    with pytest.raises(FileNotFoundError):
        open_images(Path(source or "missing"))


def test_other_paths_are_refused(tmp_path, gray, refused):
    with refused("xxx", "cannot be accessed"):
        open_images("x" * 5000)
    with refused("***", "cannot be accessed (File name too long)"):
        open_images("*" * 5000)
    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    with refused("set.parquet", ".npz", ".npy", ".h5", ".zarr", "idx3-ubyte", ".png"):
        open_images(tmp_path / "set.parquet")
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["images"] = gray
    with refused("set.h5", "'images'", "'other'"):
        open_images(f"{tmp_path / 'set.h5'}::images", dataset="other")


def test_options_that_need_a_path_are_refused(gray, refused):
    for source in (gray, open_images(gray)):
        for option, value in (("split", "test"), ("dataset", "images"), ("labels", "folders")):
            with refused(option, f"{value!r} needs a path"):
                open_images(source, **{option: value})


@pytest.mark.parametrize("option", ["grayscale", "skip_bad", "external_links"])
def test_values_that_are_no_bool_are_refused(option, rgb, refused):
    for value in ("no", 1, None, [True]):
        with refused(option, f"must be True or False, got {value!r}"):
            open_images(rgb, **{option: value})
    assert open_images(rgb, **{option: np.False_}).shape == rgb.shape


def test_a_bool_of_numpy_is_recorded_as_a_bool(rgb):
    source = open_images(rgb, grayscale=np.True_)
    assert source.shape[3] == 1
    assert source.prepared.as_dict()["grayscale"] is True


def test_images_without_files_cannot_be_skipped(tmp_path, gray, refused):
    for name in ("a.npy", "a.npz", "a.h5", "a.zarr", "a-images-idx3-ubyte", "data_batch_1.bin"):
        path = tmp_path / name
        if name.endswith("npy"):
            np.save(path, gray)
        elif name.endswith("npz"):
            np.savez(path, images=gray)
        elif name.endswith("h5"):
            with h5py.File(path, "w") as file:
                file["images"] = gray
        elif name.endswith("zarr"):
            zarr.create_array(path, data=gray)
        elif name.endswith("bin"):
            path.write_bytes(bytes(3073))
        else:
            path.write_bytes(struct.pack(">IIII", 2051, *gray.shape) + gray.tobytes())
        assert len(open_images(path, skip_bad=False))
        with refused(name, "is not a folder of image files", "leave out skip_bad"):
            open_images(path, skip_bad=True)
    for source in (gray, open_images(gray)):
        with refused("skip_bad", "leave out skip_bad"):
            open_images(source, skip_bad=True)


def test_objects_that_hold_several_arrays_are_refused(tmp_path, gray, refused):
    np.savez(tmp_path / "set.npz", images=gray)
    group = zarr.open_group(str(tmp_path / "group.zarr"), mode="w")
    group.create_array("train", data=gray)
    with h5py.File(tmp_path / "set.h5", "w") as file, np.load(tmp_path / "set.npz") as archive:
        file["images"] = gray
        for source in (file, archive, {"images": gray}):
            with refused(type(source).__name__, "by name (images)", "source['images']"):
                open_images(source)
        assert open_images(file["images"]).shape == (20, 28, 28, 1)
    with refused("Group", "source['train']"):
        open_images(group)
    with refused("dict", "by name (a, b, c, d, ...)"):
        open_images(dict.fromkeys("abcde", gray))


def test_a_file_with_colons_in_its_name_is_a_file(tmp_path, gray):
    np.save(tmp_path / "a::b.npy", gray)
    assert len(open_images(str(tmp_path / "a::b.npy"))) == 20


@pytest.mark.skipif(INSTALLED, reason="dataset-fashion-mnist is installed")
def test_a_known_set_that_is_not_installed_is_refused(refused):
    with refused("fashion-mnist", "apt install dataset-fashion-mnist", error=SourceNotFoundError):
        open_images("fashion-mnist")


@pytest.mark.skipif(not INSTALLED, reason="dataset-fashion-mnist is not installed")
def test_a_known_set_is_opened_by_name(fashion):
    source = open_images("fashion-mnist")
    assert source.shape == (60000, 28, 28, 1)
    assert source.name == "fashion-mnist"
    assert np.bincount(source.labels).tolist() == [6000] * 10
    first = np.sort(np.concatenate([np.flatnonzero(source.labels == c)[:600] for c in range(10)]))
    np.testing.assert_array_equal(source.read(first)[..., 0], fashion[0])
    np.testing.assert_array_equal(source.labels[first], fashion[1])
