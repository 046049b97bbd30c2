import io
import warnings
import zipfile

import numpy as np
import pytest

from patchindex.images import open_images


def test_round_trip_with_labels(tmp_path, rgb, labels):
    path = tmp_path / "set.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, images=rgb, labels=labels.astype(np.uint8))
        source = open_images(path)
        np.testing.assert_array_equal(source[:], rgb)
        np.testing.assert_array_equal(source.labels, labels)
        assert source.name == str(path)


def test_labels_are_optional(tmp_path, gray):
    np.savez(tmp_path / "set.npz", images=gray)
    assert open_images(str(tmp_path / "set.npz")).labels is None


def test_other_keys_are_listed(tmp_path, gray, refused):
    path = tmp_path / "set.npz"
    np.savez(path, x_train=gray, y_train=gray)
    with refused(path, "x_train, y_train", "np.savez(file, images="):
        open_images(path)


def test_labels_that_do_not_fit(tmp_path, gray, refused):
    path = tmp_path / "set.npz"
    np.savez(path, images=gray, labels=np.arange(7))
    with refused(path, "7 labels for 20 images"):
        open_images(path)
    assert open_images(path, labels=np.arange(20)).labels.tolist() == list(range(20))


def damaged(kind, data):
    return {
        "empty": b"",
        "half": data[: len(data) // 2],
        "header": data[:10],
        "text": b"not a zip\n" * 100,
        "npy": np.lib.format.magic(1, 0) + data,
        "flipped": data[:2000] + bytes(b ^ 255 for b in data[2000:2100]) + data[2100:],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "half", "header", "text", "npy", "flipped"])
def test_damage_is_an_input_error_and_leaves_no_handle_open(tmp_path, gray, kind, refused):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=gray)
    path.write_bytes(damaged(kind, path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused(path, "not a readable .npz (truncated or another kind of file)"):
            open_images(path)


def test_a_truncated_array_inside_a_whole_zip(tmp_path, gray, refused):
    buffer = io.BytesIO()
    np.save(buffer, gray)
    path = tmp_path / "set.npz"
    for content in (buffer.getvalue()[:1000], buffer.getvalue()[:20], b""):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
        with refused(path):
            open_images(path)


def test_objects_are_never_unpickled(tmp_path, refused):
    path = tmp_path / "set.npz"
    images = np.empty(2, object)
    np.savez(path, images=images)
    with refused(path, "Python objects", "uint8"):
        open_images(path)
