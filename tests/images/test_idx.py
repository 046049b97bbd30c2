import gzip
import struct

import numpy as np
import pytest

from patchindex.images import open_images
from patchindex.images.formats.idx import read_array


def write(path, array):
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data += array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("labels_end", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_labels_are_in_the_file_beside(tmp_path, gray, labels, end, labels_end, dash):
    path = write(tmp_path / f"train-images{dash}idx3-ubyte{end}", gray)
    write(tmp_path / f"train-labels{dash}idx1-ubyte{labels_end}", labels)
    np.testing.assert_array_equal(open_images(path).labels, labels)


def test_given_labels_replace_a_damaged_file_of_labels(tmp_path, gray, labels):
    path = write(tmp_path / "t-images-idx3-ubyte", gray)
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(b"damaged")
    np.testing.assert_array_equal(open_images(path, labels=labels).labels, labels)


def test_plain_files_are_mapped(tmp_path, gray):
    assert isinstance(read_array(write(tmp_path / "t-images-idx3-ubyte", gray), dimensions=3), np.memmap)


@pytest.mark.parametrize("data", [b"", b"\0\0", b"PK\3\4" * 10, b"\0\0\x0b\3" + b"\0" * 12])
def test_another_magic_number_is_refused(tmp_path, data, refused):
    path = tmp_path / "t-images-idx3-ubyte"
    path.write_bytes(data)
    with refused(path, "not an IDX file of images", "00000803", "-images-idx3-ubyte"):
        open_images(path)


def test_labels_are_refused_as_images(tmp_path, labels, refused):
    path = write(tmp_path / "t-labels-idx1-ubyte", labels)
    with refused(path, "00000801", "-images-idx3-ubyte"):
        open_images(path)
