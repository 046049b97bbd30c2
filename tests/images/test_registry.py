import gzip
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from patchindex.errors import SourceNotFoundError
from patchindex.images import KNOWN_SETS, open_images
from patchindex.images.registry import FORMATS


def write_all(root, images):
    """The same images in every format."""
    np.savez(root / "set.npz", images=images)
    np.save(root / "set.npy", images)
    with h5py.File(root / "set.h5", "w") as file:
        file["images"] = images
    zarr.create_array(str(root / "set.zarr"), data=images)
    idx = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes()
    (root / "set-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    (root / "folder").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / "folder" / f"{i:02}.png")
    faces = root / "celeba" / "img_align_celeba"
    faces.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(faces / f"{i:02}.png")
    parts = (f"{i:02}.png 0\n" for i in range(len(images)))
    (root / "celeba" / "list_eval_partition.txt").write_text("".join(parts))
    return sorted(root.iterdir())


def test_every_format_gives_the_same_source(tmp_path, gray, labels):
    paths = write_all(tmp_path, gray)
    assert len(paths) == len(FORMATS)
    for path in [*paths, *map(str, paths)]:
        source = open_images(path)
        assert source.shape == (20, 28, 28, 1)
        assert source.name == str(path)
        np.testing.assert_array_equal(source[:][..., 0], gray)
        options = {"crop": 24, "resize": (8, 10), "grayscale": True, "labels": labels, "limit": 6}
        small = open_images(path, **options)
        np.testing.assert_array_equal(small[:], open_images(gray, **options)[:])
        np.testing.assert_array_equal(small.labels, labels[:6])


def test_a_wrong_number_of_labels_for_every_format(tmp_path, gray, refused):
    for path in write_all(tmp_path, gray):
        with refused("labels", "21 labels for 20 images"):
            open_images(path, labels=np.arange(21))


def test_sources_are_returned_as_they_are_and_never_changed(gray, labels):
    source = open_images(gray)
    assert open_images(source) is source
    assert open_images(source, labels=labels).labels is not None
    assert source.labels is None
    assert open_images(source, limit=3).shape[0] == 3
    assert open_images(source, resize=7).shape == (20, 7, 7, 1)


def test_limit(gray, labels, refused):
    assert open_images(gray, labels=labels, limit=1).labels.tolist() == [labels[0]]
    assert len(open_images(gray, limit=np.int64(7))) == 7
    assert len(open_images(gray, limit=10**6)) == 20
    for limit in (0, -4):
        with refused("array", "limit"):
            open_images(gray, limit=limit)
    with refused("limit", "integer"):
        open_images(gray, limit=2.5)


@pytest.mark.parametrize("source", ["no/such/file.npz", "no-such-set", "", "file.h5::images", "x" * 5000])
def test_missing_sources(tmp_path, monkeypatch, source, refused):
    monkeypatch.chdir(tmp_path)
    if len(source) > 255:
        with refused(source, "cannot be accessed"):
            open_images(source)
        return
    with refused(source, "no such file or folder", "fashion-mnist", error=SourceNotFoundError):
        open_images(source)
    with pytest.raises(FileNotFoundError):
        open_images(Path(source or "missing"))


def test_unknown_formats_list_the_known_ones(tmp_path, refused):
    path = tmp_path / "set.parquet"
    path.write_bytes(b"PAR1")
    with refused(path, ".npz", ".npy", ".h5", ".zarr", "idx3-ubyte", ".png"):
        open_images(path)


def test_options_that_a_source_cannot_have(tmp_path, gray, refused):
    for path in write_all(tmp_path, gray):
        if path.name != "folder":
            with refused(path, "folder of image files"):
                open_images(path, labels="folders")
        if path.suffix not in (".h5", ".zarr"):
            with refused(path, "leave out dataset"):
                open_images(path, dataset="images")
            with refused(path, "leave out dataset"):
                open_images(f"{path}::images")
    with refused("labels", "folders"):
        open_images(gray, labels="folders")
    for source in (gray, open_images(gray)):
        with refused("split", "'test' needs a path"):
            open_images(source, split="test")
    with refused("dataset"):
        open_images(gray, dataset="images")
    with refused("set.h5", "'images'", "'other'"):
        open_images(f"{tmp_path / 'set.h5'}::images", dataset="other")


def test_objects_that_hold_several_things_by_name(tmp_path, gray, refused):
    write_all(tmp_path, gray)
    group = zarr.open_group(str(tmp_path / "group.zarr"), mode="w")
    group.create_array("train", data=gray)
    with h5py.File(tmp_path / "set.h5") as file, np.load(tmp_path / "set.npz") as archive:
        for source in (file, archive, {"images": gray}):
            with refused(type(source).__name__, "by name (images)", "source['images']"):
                open_images(source)
        assert open_images(file["images"]).shape == (20, 28, 28, 1)
    with refused("Group", "source['train']"):
        open_images(group)
    with refused("dict", "by name (a, b, c, d, ...)"):
        open_images(dict.fromkeys("abcde", gray))


def test_names_with_colons_are_files_first(tmp_path, gray):
    path = tmp_path / "a::b.npy"
    np.save(path, gray)
    assert len(open_images(str(path))) == 20


def test_known_sets_that_are_not_installed(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(
        KNOWN_SETS, "fashion-mnist", (tmp_path / "none.gz", "apt install dataset-fashion-mnist")
    )
    with refused("fashion-mnist", "apt install dataset-fashion-mnist", error=SourceNotFoundError):
        open_images("fashion-mnist")


@pytest.mark.skipif(
    not KNOWN_SETS["fashion-mnist"][0].is_file(), reason="dataset-fashion-mnist is not installed"
)
def test_fashion_mnist(fashion):
    source = open_images("fashion-mnist")
    assert source.shape == (60000, 28, 28, 1)
    assert source.name == "fashion-mnist"
    assert np.bincount(source.labels).tolist() == [6000] * 10
    first = np.sort(np.concatenate([np.flatnonzero(source.labels == c)[:600] for c in range(10)]))
    np.testing.assert_array_equal(source.read(first)[..., 0], fashion[0])
    np.testing.assert_array_equal(source.labels[first], fashion[1])
