import numpy as np
import pytest

from patchindex.errors import SourceNotFoundError
from patchindex.images import open_images


@pytest.fixture
def parts(tmp_path, gray, labels):
    """Paths of four files of five images each."""
    for i, rows in enumerate(np.split(np.arange(20), 4)):
        np.savez(tmp_path / f"part-{i}.npz", images=gray[rows], labels=labels[rows])
    return sorted(tmp_path.iterdir())


def test_several_files_are_one_source(parts, tmp_path, gray, labels):
    for source in (open_images(parts), open_images(str(tmp_path / "part-*.npz"))):
        assert source.name.endswith("part-0.npz and 3 more")
        np.testing.assert_array_equal(source[:][..., 0], gray)
        np.testing.assert_array_equal(source.read([19, 3, 10, 10])[..., 0], gray[[19, 3, 10, 10]])
        np.testing.assert_array_equal(source.labels, labels)
    small = open_images(parts, resize=7, limit=12, labels=labels + 1)
    assert small.shape == (12, 7, 7, 1)
    assert small.labels.tolist() == (labels[:12] + 1).tolist()
    one = open_images(str(tmp_path / "part-1*"))
    assert one.name == str(parts[1])


def test_parts_that_do_not_fit_are_refused(tmp_path, refused):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8))
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 9, 9), np.uint8))
    np.savez(tmp_path / "c.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[1, 2])
    for other, words in (
        ("b", "b.npz: images have shape (9, 9, 1)"),
        ("c", "c.npz: images have labels, unlike"),
    ):
        with refused(words):
            open_images([tmp_path / "a.npz", tmp_path / f"{other}.npz"])
    with refused("x-*.npz", "no path matches", error=SourceNotFoundError):
        open_images(str(tmp_path / "x-*.npz"))


def test_labels_are_for_all_images_of_all_parts(tmp_path, gray, write_pictures, refused):
    whole = write_pictures(tmp_path / "whole", gray[:2])
    six = write_pictures(tmp_path / "six", gray[2:8])
    (six / "002.png").write_bytes(b"no image")
    for paths, left in (([whole, six], [0, 1, 2, 3, 5, 6, 7]), ([six, whole], [0, 1, 3, 4, 5, 6, 7])):
        source = open_images(paths, skip_bad=True, labels=np.arange(8))
        assert source.labels.tolist() == left
        assert source.skipped == ("002.png",)
    with refused("7 labels for 8 images"):
        open_images([six, whole], skip_bad=True, labels=np.arange(7))


def test_labels_of_one_name_are_one_label(tmp_path, gray, write_pictures):
    first = write_pictures(tmp_path / "1", gray[:2], ["cat/1.png", "dog/1.png"])
    second = write_pictures(tmp_path / "2", gray[:2], ["ant/1.png", "dog/1.png"])
    source = open_images([first, second], labels="folders")
    assert source.label_names == ("cat", "dog", "ant")
    assert source.labels.tolist() == [0, 1, 2, 1]
