"""Only regular files are opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from patchindex.regular_files import IrregularFileError, open_regular, read_regular, refuse_links


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    return path


def test_a_regular_file_is_read_up_to_its_limit(file):
    assert read_regular(file, 3) == b"abc"
    with pytest.raises(IrregularFileError, match="holds more than 2 bytes"):
        read_regular(file, 2)


def test_links_are_opened_only_on_demand(file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(IrregularFileError, match="is a link"):
        open_regular(tmp_path / "link")
    assert read_regular(tmp_path / "link", 3, follow_links=True) == b"abc"
    with pytest.raises(IrregularFileError, match="is a device"):
        open_regular(tmp_path / "endless", follow_links=True)


def test_nothing_else_is_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path, kind in (
            (tmp_path / "fifo", "FIFO"),
            (tmp_path / "socket", "socket"),
            (tmp_path, "folder"),
            (Path("/dev/null"), "device"),
        ):
            with pytest.raises(IrregularFileError, match=f"is a {kind}, not a regular file"):
                open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_linked_folder_inside_a_folder_is_refused(file, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path)
    refuse_links(tmp_path, "a/file")
    with pytest.raises(IrregularFileError, match="is in the folder a/b, which is a link"):
        refuse_links(tmp_path, "a/b/file")
