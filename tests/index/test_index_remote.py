"""Stores on object storage: a local S3 server holds one, and a cache the parts of it that are used."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patchindex_cli import main

import patchindex as pi
from patchindex.errors import InputError, SourceNotFoundError, StoreError
from patchindex.index.checksums import CURVE, MANIFEST

moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
# What the server and the client's own parts warn of.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server():
    """A bucket, and how to reach it."""
    import s3fs

    thread = moto.ThreadedMotoServer(port=0, verbose=False)
    thread.start()
    host, port = thread.get_host_and_port()
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    files = s3fs.S3FileSystem(**options)
    files.mkdir("bucket")
    yield files, options
    thread.stop()


@pytest.fixture
def there(server, labelled, tmp_path, monkeypatch):
    """A store in the bucket, and the same one here."""
    files, options = server
    monkeypatch.setenv("PATCHINDEX_CACHE", str(tmp_path / "cache"))
    store = pi.build_index(
        labelled[0], tmp_path / "s.zarr", scales=[3, 5], labels=labelled[1], locality=[3, 3, 5, 5]
    )
    pi.calibrate(store.path)
    files.put(str(store.path), "bucket/s.zarr", recursive=True)
    yield store, files, options
    files.rm("bucket/s.zarr", recursive=True)
    files.invalidate_cache()


def cached(tmp_path):
    return [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_what_is_drawn_is_the_same_and_only_what_is_used_is_copied(there, tmp_path):
    store, _, options = there
    remote = pi.open_index("s3://bucket/s.zarr", storage_options=options)
    assert remote.scales == (3, 5)
    (folder,) = cached(tmp_path)
    assert not (folder / "scales").exists()
    x = torch.randn(1, 1, 14, 14)
    means = [
        pi.ScoreMachine(index, estimator="priority", locality=[3, 3]).posterior_mean(x, 0.5).mean
        for index in (store, remote)
    ]
    assert torch.equal(*means)
    assert [p.name for p in (folder / "scales").iterdir()] == ["k003"]
    assert (folder / "scales" / "k003" / CURVE).exists()
    drawn = [pi.sample(pi.ScoreMachine(i, estimator="topk"), n=1, steps=5).images for i in (store, remote)]
    assert torch.equal(*drawn)
    np.testing.assert_array_equal(remote.training.labels, store.training.labels)


def test_a_second_opening_copies_nothing(there, tmp_path, monkeypatch):
    _, files, options = there
    pi.open_index("s3://bucket/s.zarr", storage_options=options).scale(3)
    monkeypatch.setattr(type(files), "get_file", lambda *_: 1 / 0)
    pi.open_index("s3://bucket/s.zarr", storage_options=options).scale(3)
    assert len(cached(tmp_path)) == 1


def test_a_store_that_is_another_is_copied_anew(there, labelled, tmp_path):
    store, files, options = there
    before = pi.open_index("s3://bucket/s.zarr", storage_options=options)
    pi.append(store.path, labelled[0][:3], labelled[1][:3])
    files.rm("bucket/s.zarr", recursive=True)
    files.put(str(store.path), "bucket/s.zarr", recursive=True)
    after = pi.open_index("s3://bucket/s.zarr", storage_options=options)
    assert (len(before.training), len(after.training)) == (40, 43)
    assert len(cached(tmp_path)) == 2


def test_damage_there_is_told_and_leaves_nothing_here(there, tmp_path):
    store, files, options = there
    name = "scales/k003/centroids/c/0/0"
    data = bytearray((store.path / name).read_bytes())
    data[40] ^= 1
    files.pipe_file(f"bucket/s.zarr/{name}", bytes(data))
    index = pi.open_index("s3://bucket/s.zarr", storage_options=options)
    with pytest.raises(StoreError, match=rf"{name}: is damaged"):
        index.scale(3)
    assert index.scale(5).attributes["k"] == 5
    files.rm_file(f"bucket/s.zarr/{name}")
    with pytest.raises(StoreError, match="a file is missing"):
        index.scale(3)
    (folder,) = [p for p in cached(tmp_path) if not p.name.endswith(".arriving")]
    assert not (folder / "scales" / "k003").exists()


def test_what_is_not_there(there, server, monkeypatch):
    _, options = server
    with pytest.raises(SourceNotFoundError, match="no such store"):
        pi.open_index("s3://bucket/none.zarr", storage_options=options)
    with pytest.raises(InputError, match="cannot be opened"):
        pi.open_index("nothing://x/s.zarr")


def test_at_the_command_line_with_credentials_of_the_environment(there, server, tmp_path, monkeypatch):
    _, options = server
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["client_kwargs"]["endpoint_url"])
    for command in (
        ("info", "s3://bucket/s.zarr"),
        ("sample", "s3://bucket/s.zarr", "-n", "1", "--steps", "3", "-o", str(tmp_path / "out")),
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "grid.png").exists()
    shutil.rmtree(tmp_path / "out")
    machine = pi.ScoreMachine("s3://bucket/s.zarr", estimator="topk")
    assert machine.index is not None
    assert (machine.index.path / MANIFEST).exists()
