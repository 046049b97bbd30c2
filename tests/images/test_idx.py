import gzip
import struct
import warnings

import numpy as np
import pytest

from patchindex.images import open_images
from patchindex.images.idx import read_array


def encode(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write(path, array):
    data = encode(array)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("labels_end", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_round_trip_with_labels_beside(tmp_path, gray, labels, end, labels_end, dash):
    path = write(tmp_path / f"train-images{dash}idx3-ubyte{end}", gray)
    write(tmp_path / f"train-labels{dash}idx1-ubyte{labels_end}", labels)
    source = open_images(path)
    np.testing.assert_array_equal(source[:][..., 0], gray)
    np.testing.assert_array_equal(source[[3, 1]][..., 0], gray[[3, 1]])
    np.testing.assert_array_equal(source.labels, labels)


def test_labels_are_optional(tmp_path, gray):
    assert open_images(write(tmp_path / "t-images-idx3-ubyte", gray)).labels is None


def test_plain_files_are_mapped(tmp_path, gray):
    assert isinstance(read_array(write(tmp_path / "t-images-idx3-ubyte", gray), dimensions=3), np.memmap)


def test_labels_given_by_the_user_are_taken_instead(tmp_path, gray, labels):
    path = write(tmp_path / "t-images-idx3-ubyte", gray)
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(b"damaged")
    np.testing.assert_array_equal(open_images(path, labels=labels).labels, labels)


def test_labels_that_do_not_fit(tmp_path, gray, labels, refused):
    path = write(tmp_path / "t-images-idx3-ubyte", gray)
    write(tmp_path / "t-labels-idx1-ubyte", labels[:7])
    with refused(path, "7 labels for 20 images"):
        open_images(path)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("change", [-1, -5000, 1])
def test_a_wrong_length(tmp_path, gray, end, change, refused):
    path = tmp_path / f"t-images-idx3-ubyte{end}"
    data = encode(gray)
    data = data[:change] if change < 0 else data + b"x" * change
    path.write_bytes(gzip.compress(data) if end else data)
    with refused(path, "truncated" if change < 0 else "longer", "again"):
        open_images(path)


@pytest.mark.parametrize("kept", [3, 9, 30, 3000])
def test_a_truncated_gzip(tmp_path, gray, kept, refused):
    path = write(tmp_path / "t-images-idx3-ubyte.gz", gray)
    path.write_bytes(path.read_bytes()[:kept])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused(path, "again"):
            open_images(path)


def test_a_damaged_gzip(tmp_path, gray, refused):
    path = write(tmp_path / "t-images-idx3-ubyte.gz", gray)
    data = path.read_bytes()
    path.write_bytes(data[:3000] + bytes(b ^ 255 for b in data[3000:]))
    with refused(path, "again"):
        open_images(path)


@pytest.mark.parametrize("data", [b"", b"\0\0", b"PK\3\4" * 10, b"\0\0\x0b\3" + b"\0" * 12])
def test_another_magic(tmp_path, data, refused):
    path = tmp_path / "t-images-idx3-ubyte"
    path.write_bytes(data)
    with refused(path, "not an IDX file of images", "00000803", "-images-idx3-ubyte"):
        open_images(path)


def test_labels_are_no_images(tmp_path, labels, refused):
    path = write(tmp_path / "t-labels-idx1-ubyte", labels)
    with refused(path, "00000801", "-images-idx3-ubyte"):
        open_images(path)


def test_no_images(tmp_path, gray, refused):
    for end in ("", ".gz"):
        path = write(tmp_path / f"t-images-idx3-ubyte{end}", gray[:0])
        with refused(path, "no images"):
            open_images(path)
