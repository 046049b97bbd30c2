"""Atomic writes: the old file or the new file, never a part."""

from __future__ import annotations

import os

import pytest

from patchindex.store.atomic import atomic_write, publish


def test_the_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("failing", ["block", "fsync", "replace"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, failing, shared):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    if failing != "block":
        monkeypatch.setattr(os, failing, lambda *_: 1 / 0)

    def write():
        with atomic_write(path, shared=shared) as file:
            file.write(b"new")
            if failing == "block":
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_two_writers_of_a_shared_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with atomic_write(path, shared=True) as first:
        with atomic_write(path, shared=True) as second:
            second.write(b"second")
        first.write(b"first")
    assert path.read_bytes() == b"first"


def test_an_error_is_kept_when_the_new_file_is_gone(tmp_path):
    def write():
        with atomic_write(tmp_path / "file"):
            (tmp_path / "file.tmp").unlink()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()


@pytest.fixture
def flushed(monkeypatch):
    """The files and folders that are flushed to disk, in order."""
    found, real = [], os.fsync

    def fsync(handle):
        found.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_a_durable_file_and_its_folder_are_flushed(tmp_path, flushed):
    with atomic_write(tmp_path / "fast", durable=False) as file:
        file.write(b"1")
    assert flushed == []
    with atomic_write(tmp_path / "file") as file:
        file.write(b"1")
    assert flushed == [str(tmp_path / "file.tmp"), str(tmp_path)]


def test_a_published_folder_is_flushed_and_renamed(tmp_path, flushed):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("1")
    publish(tmp_path / "a", tmp_path / "c")
    assert sorted(flushed[:-1]) == [str(tmp_path / name) for name in ("a", "a/b", "a/b/file")]
    assert flushed[-1] == str(tmp_path)  # after the folder has its new name
    assert (tmp_path / "c" / "b" / "file").read_text() == "1"
    assert not (tmp_path / "a").exists()
