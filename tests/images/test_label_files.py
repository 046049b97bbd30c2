import gzip
import struct

import numpy as np
import pytest

from patchindex.errors import SourceNotFoundError
from patchindex.images import open_images
from patchindex.images.label_files import read_label_file


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


NAMES = ["l.npy", "l.npz", "l.txt", "l.csv", "t-labels-idx1-ubyte.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_labels(tmp_path, gray, labels, name):
    path = write(tmp_path / name, labels.tolist())
    for given in (path, str(path)):
        np.testing.assert_array_equal(open_images(gray, labels=given).labels, labels)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_length_says_both(tmp_path, gray, name, refused):
    path = write(tmp_path / name, [1, 2, 3])
    with refused(path, "3 labels for 20 images"):
        open_images(gray, labels=path)


@pytest.mark.parametrize("text", ["\ufeff3\r\n-1\r\n", "3\n-1", " 3\n-1\n\n"])
def test_text_as_editors_leave_it(tmp_path, text):
    path = tmp_path / "l.txt"
    path.write_bytes(text.encode())
    assert read_label_file(path, 2).tolist() == [3, -1]


@pytest.mark.parametrize(
    ("text", "line"), [("label\n1\n2\n", 1), ("1\n2.5\n", 2), ("1\n\n2\n", 2), ("1,0\n", 1)]
)
def test_text_that_is_not_integers(tmp_path, text, line, refused):
    path = tmp_path / "l.csv"
    path.write_text(text)
    with refused(path, f"line {line} ", "one integer per line"):
        read_label_file(path, 3)


def test_text_that_is_not_text(tmp_path, refused):
    path = tmp_path / "l.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with refused(path, "UTF-8"):
        read_label_file(path, 3)


def test_integers_that_int64_cannot_hold(tmp_path, refused):
    path = tmp_path / "l.txt"
    path.write_text("1\n99999999999999999999999\n")
    with refused(path):
        read_label_file(path, 2)


def test_other_files(tmp_path, refused):
    with refused(tmp_path / "l.npy", "no such file", error=SourceNotFoundError):
        read_label_file(tmp_path / "l.npy", 3)
    path = tmp_path / "l.json"
    path.write_text("[1]")
    with refused(path, ".txt or .csv"):
        read_label_file(path, 1)
    np.savez(tmp_path / "l.npz", y=[1])
    with refused(tmp_path / "l.npz", "no key labels", "has y"):
        read_label_file(tmp_path / "l.npz", 1)
