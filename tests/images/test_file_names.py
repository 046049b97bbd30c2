"""File names of images: of every kind of source, of parts of sources, and as one array."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

import patchindex as pi
from patchindex.errors import InputError
from patchindex.images.by_label import TrainingImages
from patchindex.images.file_names import LONGEST_NAME, FileNames, numbered

NAMES = ["b/2.png", "a/10.png", "a/19.png", "c.png"]


@pytest.fixture
def folder(real_images, tmp_path):
    """Four image files; the first pixel of each is its place in `NAMES`."""
    for i, name in enumerate(NAMES):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = real_images(4, 12)[0][i, :, :, 0]
        image[0, 0] = i
        Image.fromarray(image).save(path)
    return tmp_path / "pictures"


def names_of(source):
    return source.file_names[range(len(source))]


def test_images_of_a_folder_and_of_an_archive_have_their_relative_names(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in NAMES:
            archive.write(folder / name, name)
    for path in (folder, tmp_path / "all.zip"):
        source = pi.open_images(path)
        assert names_of(source) == sorted(NAMES)
        assert [NAMES[i] for i in source[:][:, 0, 0, 0]] == sorted(NAMES)


def test_images_of_arrays_have_no_names(real_images, tmp_path):
    images, _ = real_images(4, 12)
    np.savez(tmp_path / "x.npz", images=images)
    for source in (images, tmp_path / "x.npz"):
        assert pi.open_images(source).file_names is None


def test_parts_of_a_source_keep_the_names_of_their_images(folder):
    source = pi.open_images(folder, resize=8)
    assert names_of(source.subset(np.array([3, 0]))) == ["c.png", "a/10.png"]
    assert names_of(source.subset(slice(1, 3))) == ["a/19.png", "b/2.png"]
    assert names_of(pi.open_images(folder, limit=2)) == ["a/10.png", "a/19.png"]
    assert names_of(pi.open_images(source, crop=4)) == sorted(NAMES)


def test_names_of_several_sources_tell_their_folders(folder, real_images, tmp_path, monkeypatch):
    several = pi.open_images([folder / "a", folder / "b"])
    assert names_of(several) == ["a/10.png", "a/19.png", "b/2.png"]
    assert names_of(pi.open_images(str(folder / "a" / "*.png"))) == ["10.png", "19.png"]
    assert names_of(pi.open_images([folder / "a/19.png", folder / "c.png"])) == ["a/19.png", "c.png"]
    np.save(tmp_path / "x.npy", real_images(2, 12)[0])
    assert names_of(pi.open_images([tmp_path / "x.npy", folder / "b"])) == ["", "", "pictures/b/2.png"]
    monkeypatch.chdir(folder)
    assert names_of(pi.open_images(["a", "b/2.png"])) == ["a/10.png", "a/19.png", "b/2.png"]


def test_skipped_files_shift_no_names(folder):
    (folder / "a" / "19.png").write_bytes(b"no picture")
    assert names_of(pi.open_images(folder, skip_bad=True)) == ["a/10.png", "b/2.png", "c.png"]


def test_training_images_are_named_by_their_numbers_in_the_source(folder):
    training = TrainingImages(folder, labels=[2, 1, 0, 0])
    assert training.labels.tolist() == [0, 0, 1, 2]
    assert training.image_names([3, 0]) == ["c.png", "a/10.png"]
    assert training.image_names(np.empty(0, np.int64)) == []
    assert training.numbered(1) == "1 (a/19.png)"
    assert training.file_names()[[0, 1, 2, 3]] == ["b/2.png", "c.png", "a/19.png", "a/10.png"]
    for ids, words in (([4], "there is no image 4"), ([-1], "no image -1"), ([0.5], "is no sequence of")):
        with pytest.raises(InputError, match=words):
            training.image_names(ids)


def test_training_images_without_files_have_empty_names(real_images):
    training = TrainingImages(real_images(3, 12)[0])
    assert training.image_names([2, 0]) == ["", ""]
    assert training.numbered(2) == "2"


@pytest.mark.parametrize("index", [slice(0, 3), slice(1, 1), slice(2, 4), [], [3], [2, 2, 0, 1]])
def test_names_in_one_array_are_taken_as_from_a_list(index, monkeypatch):
    monkeypatch.setattr("patchindex.images.file_names.GATHERED", 2)
    names = ["ü/1.png", "", "\x1b[2J.png", "日本.png"]
    found = FileNames.of(names).subset(index if isinstance(index, slice) else np.array(index, np.int64))
    expected = names[index] if isinstance(index, slice) else [names[i] for i in index]
    assert found[range(len(found))] == expected


def test_names_that_are_no_text_or_too_long_are_kept_as_text():
    text = FileNames.of(["x\udcff.png", "é" * LONGEST_NAME + "x"])
    assert text[[0]] == ["x\\udcff.png"]
    assert text[[1]] == ["é" * ((LONGEST_NAME - 1) // 2) + "x"]


def test_a_printed_name_moves_no_cursor():
    assert numbered(3, "\x1b[2J\n.png") == r"3 (\x1b[2J\n.png)"
