"""Labels from every kind of source: arrays, files, and the parameter that says where they come from."""

import gzip
import struct

import h5py
import numpy as np
import pytest
import torch
import zarr

from patchindex.errors import PatchIndexWarning, SourceNotFoundError
from patchindex.images import LabelSpec, open_images
from patchindex.images.label_files import read_label_file
from patchindex.images.labels import as_labels


@pytest.mark.parametrize(
    "values",
    [
        [0, 2, 1],
        (0, 2, 1),
        range(3),
        np.array([0, 2, 1], np.uint8),
        np.array([0, 2, 1], ">i4"),
        np.array([0.0, 2.0, 1.0], np.float32),
        np.array([2**63 - 2**12] * 3, np.uint64),
        torch.tensor([0, 2, 1]),
    ],
)
def test_integers_of_any_kind_become_int64(values):
    labels = as_labels(values, 3)
    assert labels.dtype == np.int64
    assert labels.tolist() == [int(v) for v in values]


def test_labels_are_copied():
    values = np.arange(3)
    as_labels(values, 3)[0] = 9
    assert values[0] == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 2], "2 labels for 3 images"),
        ([[1, 2], [2, 1], [3, 3]], "shape (3, 2)"),
        ([[1], [2, 3]], "cannot be read"),
        ([0.5, 1.0, 2.0], "label 0 is 0.5"),
        ([0.0, np.nan, 2.0], "label 1 is nan"),
        ([0.0, 1e300, 2.0], "label 1"),
        ([0, 1, 2**64 - 1], "label 2"),
        (["cat", "dog", "cat"], "dtype <U3"),
        ([True, False, True], "dtype bool"),
        ([1, None, 2], "dtype object"),
    ],
)
def test_other_values_are_refused(values, words, refused):
    with refused("file.npy", words):
        as_labels(values, 3, where="file.npy")
    with refused("labels", words):
        open_images(np.zeros((3, 4, 4), np.uint8), labels=values)


def write(path, labels):
    match path.suffix:
        case ".npy":
            np.save(path, labels)
        case ".npz":
            np.savez(path, labels=labels, other=labels)
        case ".txt" | ".csv":
            path.write_text("".join(f"{label}\n" for label in labels))
        case _:
            path.write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels)))
    return path


@pytest.mark.parametrize("name", ["l.npy", "l.npz", "l.txt", "l.csv", "t-labels-idx1-ubyte.gz"])
def test_labels_are_read_from_every_format(tmp_path, gray, labels, name, refused):
    path = write(tmp_path / name, labels.tolist())
    for given in (path, str(path), LabelSpec.parse(path)):
        np.testing.assert_array_equal(open_images(gray, labels=given).labels, labels)
    write(path, [1, 2, 3])
    with refused(path, "3 labels for 20 images"):
        open_images(gray, labels=path)


@pytest.mark.parametrize("text", ["\ufeff3\r\n-1\r\n", "3\n-1", " 3\n-1\n\n"])
def test_text_is_read_as_editors_leave_it(tmp_path, text):
    (tmp_path / "l.txt").write_bytes(text.encode())
    assert read_label_file(tmp_path / "l.txt", 2).tolist() == [3, -1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"label\n1\n2\n", "line 1 "),
        (b"1\n2.5\n", "line 2 "),
        (b"1\n\n2\n", "line 2 "),
        (b"1,0\n", "one integer per line"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"1\n2\n99999999999999999999999\n", "line 3 "),
        (b"1_0\n", "line 1 is '1_0'"),
        ("\u0661\n".encode(), "line 1 "),
        (b"1\n" * 10**6, "more than"),
    ],
)
def test_text_of_other_things_is_refused(tmp_path, data, words, refused):
    (tmp_path / "l.csv").write_bytes(data)
    with refused(tmp_path / "l.csv", words):
        read_label_file(tmp_path / "l.csv", 3)


def test_other_files_of_labels_are_refused(tmp_path, refused):
    with refused(tmp_path / "l.npy", "no such file", error=SourceNotFoundError):
        read_label_file(tmp_path / "l.npy", 3)
    (tmp_path / "l.json").write_text("[1]")
    with refused(tmp_path / "l.json", ".txt or .csv"):
        read_label_file(tmp_path / "l.json", 1)
    np.savez(tmp_path / "l.npz", y=[1])
    with refused(tmp_path / "l.npz", "no key labels", "has y"):
        read_label_file(tmp_path / "l.npz", 1)


def test_a_label_spec_is_found_from_another_folder(tmp_path, gray, labels, monkeypatch, refused):
    write(tmp_path / "l.txt", labels)
    monkeypatch.chdir(tmp_path)
    spec = LabelSpec.parse("l.txt").absolute()
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(open_images(gray, labels=spec).labels, labels)
    with refused("labels", "names no attribute"):
        LabelSpec.parse("attr:")


@pytest.mark.parametrize("kind", ["file", "array"])
def test_labels_of_names_that_sort_as_text_are_doubted(kind, tmp_path, gray, write_pictures):
    write_pictures(tmp_path / "set", gray[:12], [f"{i}.png" for i in range(12)])
    write(tmp_path / "l.txt", np.arange(12))
    labels = tmp_path / "l.txt" if kind == "file" else np.arange(12)
    with pytest.warns(PatchIndexWarning, match=r"10\.png comes before 2\.png; check that the labels"):
        open_images(tmp_path / "set", labels=labels)
    for i in range(12):
        np.save(tmp_path / f"part-{i}.npy", gray[i : i + 1])
    with pytest.warns(PatchIndexWarning, match=r"part-10\.npy comes before .*part-2\.npy"):
        open_images(str(tmp_path / "part-*.npy"), labels=labels)
    # In the order of their numbers, or without labels: no warning.
    open_images(tmp_path / "set")
    open_images([tmp_path / f"part-{i}.npy" for i in range(12)], labels=labels)
    write_pictures(tmp_path / "padded", gray[:12])
    open_images(tmp_path / "padded", labels=labels)


def test_labels_of_all_formats_follow_one_rule(tmp_path, gray, refused):
    def write_npz(path, labels):
        np.savez(path, images=gray, labels=labels)

    def write_hdf5(path, labels):
        with h5py.File(path, "w") as file:
            file["images"], file["labels"] = gray, labels

    def write_zarr(path, labels):
        group = zarr.open_group(str(path), mode="w")
        group.create_array("images", data=gray)
        group.create_array("labels", data=labels)

    for name, write_as in (("a.npz", write_npz), ("a.h5", write_hdf5), ("a.zarr", write_zarr)):
        path = tmp_path / name
        for labels in (np.arange(20), np.arange(20.0), np.arange(20)[:, None]):
            write_as(path, labels)
            assert open_images(path).labels.tolist() == list(range(20))
        for labels, words in (
            (np.arange(7), "7 labels for 20 images"),
            (np.zeros((20, 10), int), "shape (20, 10), expected (20,); give one integer per image, or leave"),
            (np.array(7), "shape ()"),
            (np.arange(20) > 3, "dtype bool"),
            (np.arange(20) / 3, "label 1 is 0.333"),
        ):
            write_as(path, labels)
            with refused(name, words):
                open_images(path)
            assert open_images(path, labels="none").labels is None
            assert open_images(path, labels=np.arange(20)).labels.tolist() == list(range(20))
