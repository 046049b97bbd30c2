"""CIFAR-10 and CIFAR-100 in their binary version."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from patchindex.images import open_images

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 10, 20)


def write(path, images, *labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [np.asarray(each, np.uint8)[:, None] for each in labels]
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    path.write_bytes(np.concatenate([*columns, pixels], 1).tobytes())


def test_a_file_of_cifar_10_has_its_images_and_labels(images, labels, tmp_path):
    path = tmp_path / "data_batch_3.bin"
    write(path, images, labels)
    source = open_images(path)
    assert source.shape == (20, 32, 32, 3)
    for index in (slice(None), slice(4, 9), [19, 0, 19, 4], np.arange(20) % 3 == 0):
        np.testing.assert_array_equal(source.read(index), images[index])
    np.testing.assert_array_equal(source.labels, labels)
    assert source.label_names is None
    assert open_images(path, labels="none").labels is None
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read([7]), images[[7]])
    gray = open_images(path, crop=24, grayscale=True, limit=3)
    np.testing.assert_array_equal(gray[:], open_images(images, crop=24, grayscale=True, limit=3)[:])


def test_a_file_of_cifar_100_has_its_fine_labels(images, labels, tmp_path):
    write(tmp_path / "train.bin", images, labels // 2, labels)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(NAMES) + "\n")
    source = open_images(tmp_path / "train.bin")
    np.testing.assert_array_equal(source[:], images)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.label_names == tuple(NAMES)


def test_a_folder_has_the_training_files_in_order_and_the_names_of_labels(images, labels, tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    for number, rows in ((1, slice(0, 8)), (2, slice(8, 15)), (10, slice(15, 20))):
        write(folder / f"data_batch_{number}.bin", images[rows], labels[rows])
    write(folder / "test_batch.bin", images[:3], labels[:3])
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    source = open_images(folder)
    assert source.name == str(folder)
    np.testing.assert_array_equal(source[:], images)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.label_names == tuple(NAMES)
    assert len(open_images(folder / "test_batch.bin")) == 3


@pytest.mark.parametrize("size", [0, 1, 3072, 3073 * 20 - 1, 3073 * 20 + 1])
def test_files_of_another_size_are_refused(images, labels, tmp_path, size, refused):
    path = tmp_path / "test_batch.bin"
    write(path, images, labels)
    path.write_bytes((path.read_bytes() + b"x")[:size])
    with refused(path, f"{size:,} bytes are no records", "copy it again"):
        open_images(path)


def test_damage_is_refused(images, labels, tmp_path, refused):
    path = tmp_path / "data_batch_1.bin"
    write(path, images, labels)
    source = open_images(path)
    path.write_bytes(path.read_bytes()[:3073])
    with refused(path, "another size than when it was opened"):
        source.read([0])
    write(path, images, np.full(20, 10))
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES))
    with refused(path, "has label 10, and batches.meta.txt has 10 names"):
        open_images(path)
    np.testing.assert_array_equal(open_images(path, labels="none")[:], images)


def test_options_of_other_formats_are_refused(images, labels, tmp_path, refused):
    path = tmp_path / "test.bin"
    write(path, images, labels, labels)
    for options in ({"split": "train"}, {"dataset": "images"}, {"labels": "folders"}, {"axes": "NHWC"}):
        with refused(path):
            open_images(path, **options)
