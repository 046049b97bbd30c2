"""The behaviour that all image formats have in common: one table of formats, and each test over all of it."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from PIL import Image

from patchindex.images import formats, open_images
from patchindex.images.registry import FORMATS
from patchindex.modules import import_modules


def write_npz(path, images, **labels):
    np.savez_compressed(path, images=images, **labels)


def write_npy(path, images):
    np.save(path, images)


def write_hdf5(path, images, **labels):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, chunks=(3, *images.shape[1:]), compression="gzip")
        for name, values in labels.items():
            file[name] = values


def write_zarr_group(path, images, **labels):
    group = zarr.open_group(str(path), mode="w")
    group.create_array("images", data=images, chunks=(6, *images.shape[1:]))
    for name, values in labels.items():
        group.create_array(name, data=values)


def write_zarr_array(path, images, zarr_format=3):
    zarr.create_array(
        str(path), data=images, chunks=(6, *images.shape[1:]), zarr_format=zarr_format, overwrite=True
    )


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path, images, **labels):
    pack = gzip.compress if path.suffix == ".gz" else bytes
    path.write_bytes(pack(idx(images[..., 0])))
    for values in labels.values():
        path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1")).write_bytes(
            pack(idx(values))
        )


def write_folder(path, images):
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path / f"{i:03}.png")


def write_zip(path, images):
    folder = path.with_name("zipped")
    write_folder(folder, images)
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)


def write_celeba(path, images):
    write_folder(path / "img_align_celeba", images)
    rows = "".join(f"{i:03}.png 0\n" for i in range(len(images)))
    (path / "list_eval_partition.txt").write_text(rows)


ABILITIES = {"labels", "colour", "floats", "on_demand", "dataset", "folders", "split", "file", "compressed"}


@dataclass(frozen=True)
class Case:
    """A format: the name of its file or folder, a function that writes it, and its abilities.

    "labels": it stores labels. "colour", "floats": it stores images with three channels, floats. "on_demand":
    images are read when they are asked for. "dataset", "folders", "split": the options of `open_images` that
    it has. "file": it is one file. "compressed": it has checksums.
    """

    name: str
    write: Callable[..., None]
    abilities: str = ""

    def can(self, ability: str) -> bool:
        assert ability in ABILITIES
        return ability in self.abilities.split()


CASES = [
    Case("set.npz", write_npz, "labels colour floats file compressed"),
    Case("set.npy", write_npy, "colour floats on_demand file"),
    Case("set.h5", write_hdf5, "labels colour floats on_demand dataset file compressed"),
    Case("recognised-by-contents", write_hdf5, "labels colour floats on_demand dataset file compressed"),
    Case("group.zarr", write_zarr_group, "labels colour floats on_demand dataset"),
    Case("array.zarr", write_zarr_array, "colour floats on_demand dataset"),
    Case("zarr-2", lambda *a: write_zarr_array(*a, zarr_format=2), "colour floats on_demand dataset"),
    Case("train-images-idx3-ubyte", write_idx, "labels on_demand file"),
    Case("train-images.idx3-ubyte.gz", write_idx, "labels file compressed"),
    Case("folder", write_folder, "colour on_demand folders"),
    Case("set.zip", write_zip, "colour folders file compressed"),
    Case("celeba", write_celeba, "colour on_demand split"),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


def only(ability):
    """Run a test for the formats that have an ability."""
    cases = [case for case in CASES if case.can(ability)]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def test_every_format_is_in_the_table_or_has_a_file_of_tests(tmp_path, gray):
    for case in CASES:
        case.write(tmp_path / case.name, gray[..., None])
    found = {next(f for f in FORMATS if f.matches(tmp_path / case.name)) for case in CASES}
    for module in import_modules(formats.__name__, formats.__path__):
        if not Path(__file__).with_name(f"test_{module.__name__.rpartition('.')[2]}.py").is_file():
            assert {f for f in vars(module).values() if f in FORMATS} <= found


def test_images_round_trip(case, tmp_path, gray, rgb):
    for i, images in enumerate([gray[..., None], rgb] if case.can("colour") else [gray[..., None]]):
        path = tmp_path / str(i) / case.name
        path.parent.mkdir()
        case.write(path, images)
        for given in (path, str(path)):
            source = open_images(given)
            assert source.shape == images.shape
            assert source.name == str(path)
            assert source.labels is None
            for index in (slice(None), slice(4, 9), [19, 0, 19, 4], [3], np.arange(20) % 3 == 0):
                np.testing.assert_array_equal(source.read(index), images[index])


@only("floats")
def test_scaled_floats_are_read_as_uint8(case, tmp_path, rgb):
    case.write(tmp_path / case.name, (rgb / 127.5 - 1).astype(np.float32))
    source = open_images(tmp_path / case.name)
    np.testing.assert_array_equal(source[:], rgb)
    np.testing.assert_array_equal(source.read([7, 2]), rgb[[7, 2]])


@only("on_demand")
def test_images_are_read_on_demand(case, tmp_path, gray):
    """Images that are written after a source was opened are read."""
    path = tmp_path / case.name
    case.write(path, gray[:10, ..., None])
    source = open_images(path)
    case.write(path, gray[10:, ..., None])
    np.testing.assert_array_equal(source[:][..., 0], gray[10:])


@only("labels")
def test_stored_labels_are_the_default(case, tmp_path, gray, labels, refused):
    path = tmp_path / case.name
    case.write(path, gray[..., None], labels=labels)
    np.testing.assert_array_equal(open_images(path).labels, labels)
    assert open_images(path, labels=labels + 1).labels.tolist() == (labels + 1).tolist()
    case.write(path, gray[..., None], labels=labels[:7])
    np.testing.assert_array_equal(open_images(path, labels=labels).labels, labels)
    with refused(path, "7 labels for 20 images"):
        open_images(path)
    assert open_images(path, labels="none").labels is None


def test_options_mean_the_same_for_every_format(case, tmp_path, gray, labels, refused):
    path = tmp_path / case.name
    case.write(path, gray[..., None])
    options = {"crop": 24, "resize": (8, 10), "grayscale": True, "labels": labels, "limit": 6}
    source = open_images(path, **options)
    np.testing.assert_array_equal(source[:], open_images(gray, **options)[:])
    np.testing.assert_array_equal(source.labels, labels[:6])
    with refused("labels", "21 labels for 20 images"):
        open_images(path, labels=np.arange(21))


def test_options_of_other_formats_are_refused(case, tmp_path, gray, refused):
    path = tmp_path / case.name
    case.write(path, gray[..., None])
    for able, options, words in (
        (case.can("folders"), {"labels": "folders"}, ("is not a folder of image files", "labels='FILE'")),
        (case.can("split"), {"labels": "attr:Smiling"}, ("is not a folder of CelebA", "labels='FILE'")),
        (case.can("split"), {"split": "train"}, ("has no splits", "leave out split")),
        (case.can("dataset"), {"dataset": "images"}, ("has no dataset 'images'", "leave out dataset")),
    ):
        if not able:
            with refused(path, *words):
                open_images(path, **options)
    if not case.can("dataset"):
        with refused(path, "leave out dataset"):
            open_images(f"{path}::images")


CAN_BE_EMPTY = [c for c in CASES if c.write in (write_npz, write_npy, write_idx, write_folder, write_zip)]


@pytest.mark.parametrize("case", CAN_BE_EMPTY, ids=lambda case: case.name)
def test_no_images_are_refused(case, tmp_path, gray, refused):
    case.write(tmp_path / case.name, gray[:0, ..., None])
    with refused(tmp_path / case.name, "no image"):
        open_images(tmp_path / case.name)


@only("file")
@pytest.mark.parametrize("size", [0, 3, 5, 9, 60, 130, 1000, 3000, 2 / 3, None])
def test_truncated_files_and_other_files_are_refused(case, size, tmp_path, gray, refused):
    path = tmp_path / case.name
    case.write(path, gray[..., None])
    data = path.read_bytes()
    size = int(size * len(data)) if isinstance(size, float) else size
    path.write_bytes(b"not a file of images\n" * 100 if size is None else data[:size])
    with refused(path):
        open_images(path)[:]


@only("compressed")
def test_corrupted_bytes_are_refused(case, tmp_path, gray, refused):
    path = tmp_path / case.name
    case.write(path, gray[..., None])
    data = path.read_bytes()
    start = len(data) // 2
    path.write_bytes(data[:start] + bytes(b ^ 255 for b in data[start : start + 100]) + data[start + 100 :])
    with refused(path):
        open_images(path)[:]


def test_a_file_with_bytes_past_its_end_is_refused(tmp_path, gray, refused):
    for name in ("t-images-idx3-ubyte", "t-images-idx3-ubyte.gz"):
        data = idx(gray) + b"x"
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        with refused(tmp_path / name, "longer than its header says", "again"):
            open_images(tmp_path / name)


def test_python_objects_are_never_loaded(tmp_path, refused):
    np.save(tmp_path / "set.npy", np.empty(3, object), allow_pickle=True)
    np.savez(tmp_path / "set.npz", images=np.empty(3, object))
    for path in tmp_path.iterdir():
        with refused(path, "Python objects", "uint8"):
            open_images(path)
