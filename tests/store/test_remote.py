"""Stores on object storage: on a local S3 server and in memory."""

from __future__ import annotations

import shutil

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patchindex_cli import main
from remote import URL, copies

import patchindex as pi
from patchindex.errors import InputError, SourceNotFoundError, StoreError
from patchindex.store.checksums import CURVE, MANIFEST, crc32c, read_checksummed, write_checksummed

moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")


# The server and the client warn about their own parts; a warning of this package still fails a test.
pytestmark = pytest.mark.filterwarnings("ignore", "error::patchindex.errors.PatchIndexWarning")


@pytest.fixture(scope="module")
def server():
    """A bucket, and the options to reach it."""
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
    """A store, its copy in the bucket, and the options to reach it."""
    files, options = server
    monkeypatch.setenv("PATCHINDEX_CACHE", str(tmp_path / "cache"))
    store = pi.build_index(
        labelled[0], tmp_path / "s.zarr", scales=[3, 5], labels=labelled[1], locality=[3, 3, 5, 5]
    )
    pi.tune(store.path)
    files.put(str(store.path), "bucket/s.zarr", recursive=True)
    yield store, files, options
    files.rm("bucket/s.zarr", recursive=True)
    files.invalidate_cache()


def test_samples_are_the_same_and_only_used_scales_are_copied(there, tmp_path):
    store, _, options = there
    remote = pi.open_index("s3://bucket/s.zarr", storage_options=options)
    assert remote.scales == (3, 5)
    assert copies(tmp_path) == ["store"]
    x = torch.randn(1, 1, 14, 14)
    means = [
        pi.ScoreMachine(index, estimator="auto", locality=[3, 3]).posterior_mean(x, 0.5).mean
        for index in (store, remote)
    ]
    assert torch.equal(*means)
    assert copies(tmp_path) == ["k003", "store"]
    assert (remote.scale(3).path / CURVE).exists()
    drawn = [pi.sample(pi.ScoreMachine(i, estimator="topk"), n=1, steps=5).images for i in (store, remote)]
    assert torch.equal(*drawn)
    np.testing.assert_array_equal(remote.training.labels, store.training.labels)


def test_a_second_opening_copies_nothing(there, tmp_path, monkeypatch):
    _, files, options = there
    pi.open_index("s3://bucket/s.zarr", storage_options=options).scale(3)
    monkeypatch.setattr(type(files), "get_file", lambda *_: 1 / 0)
    pi.open_index("s3://bucket/s.zarr", storage_options=options).scale(3)
    assert copies(tmp_path) == ["k003", "store"]


def test_a_changed_store_is_copied_again(there, labelled, tmp_path):
    store, files, options = there
    before = pi.open_index("s3://bucket/s.zarr", storage_options=options)
    pi.append(store.path, labelled[0][:3], labelled[1][:3])
    files.rm("bucket/s.zarr", recursive=True)
    files.put(str(store.path), "bucket/s.zarr", recursive=True)
    after = pi.open_index("s3://bucket/s.zarr", storage_options=options)
    assert (len(before.training), len(after.training)) == (40, 43)
    assert copies(tmp_path) == ["store", "store"]


def test_a_damaged_remote_file_is_refused_and_not_cached(there, tmp_path):
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
    assert [p.name for p in (tmp_path / "cache").glob("*/k003-*")] == [
        p.name for p in (tmp_path / "cache").glob("*/k003-*.arriving")
    ]


def test_a_missing_store_and_an_unknown_protocol_are_refused(there, server, monkeypatch):
    _, options = server
    with pytest.raises(SourceNotFoundError, match="no such store"):
        pi.open_index("s3://bucket/none.zarr", storage_options=options)
    with pytest.raises(InputError, match="cannot be opened"):
        pi.open_index("nothing://x/s.zarr")


def test_the_command_line_takes_credentials_from_the_environment(there, server, tmp_path, monkeypatch):
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


@pytest.mark.parametrize(
    "name", ["../../owned", "{cache}/owned", "images/../../owned", "a\\b", "a//b", "c:/b", ""]
)
def test_a_manifest_that_leads_out_of_the_cache_is_refused(small, put, tmp_path, name):
    name = name.format(cache=tmp_path / "cache")
    files = put(small)
    manifest = read_checksummed(small / MANIFEST) | {name: [5, f"{crc32c(b'pwned'):08x}"]}
    write_checksummed(tmp_path / MANIFEST, manifest)
    files.pipe_file(f"/s.zarr/{MANIFEST}", (tmp_path / MANIFEST).read_bytes())
    files.store[f"/s.zarr/{name}"] = fsspec.implementations.memory.MemoryFile(files, name, b"pwned")
    with pytest.raises(StoreError, match=rf"^{URL}/{MANIFEST}: has an invalid file name"):
        pi.open_index(URL)
    files_here = {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert files_here - {"lock"} == {MANIFEST}  # some versions of filelock remove the lock


@pytest.mark.parametrize("content", [[1], {"zarr.json": 5}, {"zarr.json": ["1", "2"]}])
def test_a_malformed_manifest_is_refused(small, put, tmp_path, content):
    store = shutil.copytree(small, tmp_path / "s.zarr")
    write_checksummed(store / MANIFEST, content)
    put(store)
    for path in (store, URL):
        with pytest.raises(StoreError, match=r"is not a manifest|has no size and checksum"):
            pi.open_index(path)
    assert not pi.verify(store).whole


def test_info_copies_no_scales(small, put, tmp_path):
    store = shutil.copytree(small, tmp_path / "s.zarr")
    pi.open_index(store).scale(3).save_curve({"version": 0})
    files = put(store)
    here, there = pi.open_index(store).info(), pi.open_index(URL).info()
    assert copies(tmp_path) == ["store"]
    assert there | {"path": 0} == here | {"path": 0}
    assert here["bytes"] == sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    assert here["indexes"]["3"]["operating_curve"] == {"version": 0}
    files.pipe_file("/s.zarr/scales/k003/zarr.json", b"{}")
    with pytest.raises(StoreError, match=r"zarr\.json: is missing or damaged"):
        pi.open_index(URL).info()
