"""A small store, and a remote place for stores in memory."""

from __future__ import annotations

import fsspec
import pytest

import patchindex as pi


@pytest.fixture(scope="module")
def small(labelled, tmp_path_factory):
    """A store of scale 3."""
    path = tmp_path_factory.mktemp("stores") / "s.zarr"
    return pi.build_index(labelled[0], path, scales=[3], labels=labelled[1], locality=[3, 3], threads=1).path


@pytest.fixture
def put(monkeypatch, tmp_path):
    """A function that replaces memory://s.zarr with a store, and returns the file system."""
    monkeypatch.setenv("PATCHINDEX_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")

    def put(path):
        files.store.clear()
        for file in path.rglob("*"):
            if file.is_file():
                files.pipe_file(f"/s.zarr/{file.relative_to(path).as_posix()}", file.read_bytes())
        return files

    yield put
    files.store.clear()
