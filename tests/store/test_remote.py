"""Stores on object storage, on a local S3 server and in memory, and the copies in the cache."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patchindex_cli import main

import patchindex as pi
from patchindex.errors import InputError, PatchIndexError, SourceNotFoundError, StoreError
from patchindex.store.checksums import CURVE, MANIFEST, crc32c, read_checksummed, write_checksummed
from patchindex.store.raw import raw_path

moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
# The server and the client warn about their own parts.
pytestmark = pytest.mark.filterwarnings("ignore")


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


URL = "memory://s.zarr"


def copies(tmp_path):
    """Return the parts in the cache, without the fingerprints in their names."""
    return sorted(p.name.partition("-")[0] for p in (tmp_path / "cache").glob("*.zarr/*-*"))


def fail(*_, **__):
    raise ConnectionError("no\nnetwork")


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
    torch.testing.assert_close(*means, rtol=0, atol=1e-6)  # threads add up in any order
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
    files_here = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert sorted(files_here) == ["lock", MANIFEST]


@pytest.mark.parametrize("content", [[1], {"zarr.json": 5}, {"zarr.json": ["1", "2"]}])
def test_a_malformed_manifest_is_refused(small, put, tmp_path, content):
    store = shutil.copytree(small, tmp_path / "s.zarr")
    write_checksummed(store / MANIFEST, content)
    put(store)
    for path in (store, URL):
        with pytest.raises(StoreError, match=r"is not a manifest|has no size and checksum"):
            pi.open_index(path)
    assert not pi.verify(store).whole


def test_a_later_operating_curve_is_copied(small, put, tmp_path):
    files = put(small)
    assert "operating_curve" not in pi.open_index(URL).scale(3).attributes
    with pytest.raises(InputError, match="cannot be written to"):
        pi.tune(URL)  # the next opening would remove a curve in the cache
    tuned = shutil.copytree(small, tmp_path / "tuned.zarr")
    for curve in ({"version": 0}, {"version": 1}):
        pi.open_index(tuned).scale(3).save_curve(curve)
        files.pipe_file(f"/s.zarr/scales/k003/{CURVE}", (tuned / "scales/k003" / CURVE).read_bytes())
        assert pi.open_index(URL).scale(3).attributes["operating_curve"] == curve
    files.rm(f"/s.zarr/scales/k003/{CURVE}")
    assert "operating_curve" not in pi.open_index(URL).scale(3).attributes
    assert copies(tmp_path) == ["k003", "store"]


def test_a_rebuilt_scale_is_copied_again(small, put, labelled, tmp_path):
    put(small)
    before = pi.open_index(URL)
    before.scale(3)
    options = {"labels": labelled[1], "locality": [3, 3], "pca_dims": 4, "threads": 1}
    other = pi.build_index(labelled[0], tmp_path / "s.zarr", [3], **options).path
    store = shutil.copytree(small, tmp_path / "both.zarr")
    shutil.rmtree(store / "scales")
    shutil.copytree(other / "scales", store / "scales")
    put(store)
    assert pi.open_index(URL).scale(3).pca.dims == 4
    before._scales.clear()  # as if other scales had been opened since
    assert before.scale(3).pca.dims != 4
    pi.add_scales(store, [5], threads=1)
    put(store)
    assert pi.open_index(URL).scales == (3, 5)


def test_a_damaged_copy_is_replaced(small, put, tmp_path):
    put(small)
    index = pi.open_index(URL)
    scale = index.scale(3).path
    for damaged in (index.path / "source_ids/c/0", scale / "centroids/c/0/0"):
        content = bytearray(damaged.read_bytes())
        content[3] ^= 1
        damaged.write_bytes(content)
    (scale / "list_means" / "zarr.json").unlink()
    pi.open_index(URL).scale(3)
    for large in (index.path / "images", scale / "faiss"):
        shutil.rmtree(large / "c")
    pi.open_index(URL).scale(3)
    for folder in (index.path, scale):
        (folder / MANIFEST).unlink()
    pi.open_index(URL).scale(3)
    assert copies(tmp_path) == ["k003", "store"]


def test_without_the_network_copies_are_used(small, put, tmp_path, monkeypatch):
    files = put(small)
    with monkeypatch.context() as broken:
        for name in ("cat_file", "get_file"):
            broken.setattr(type(files), name, fail)
        for opening in (pi.open_index, pi.ScoreMachine):
            with pytest.raises(InputError, match=r"cannot be read \(ConnectionError: no network\)"):
                opening(URL)
    index = pi.open_index(URL)
    with monkeypatch.context() as broken:
        broken.setattr(type(files), "cat_file", fail)
        with pytest.warns(UserWarning, match="using the copy in"):
            away = pi.open_index(URL)
        assert away.scales == (3,)
        with pytest.raises(InputError, match="no network"):
            away.scale(3)  # not in the cache
    index.scale(3)
    for name in ("cat_file", "get_file"):
        monkeypatch.setattr(type(files), name, fail)
    with pytest.warns(UserWarning, match="using the copy in"):
        there = pi.open_index(URL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning is given once
        assert there.scale(3).path == index.scale(3).path
        assert there.info()["indexes"]["3"]["lists"] == index.scale(3).attributes["lists"]
        assert pi.ScoreMachine(there, estimator="auto").index is there
    with pytest.warns(UserWarning, match="using the copy in"):
        assert pi.ScoreMachine(URL, estimator="auto").index.scales == (3,)


def test_a_refused_permission_is_an_error_even_with_a_copy(small, put, monkeypatch):
    files = put(small)
    pi.open_index(URL)

    def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(files), "cat_file", refuse)
    for opening in (pi.open_index, pi.ScoreMachine):
        with pytest.raises(InputError, match=r"cannot be read \(PermissionError: Access Denied\)"):
            opening(URL)


def test_a_failed_copy_is_an_error_and_is_tried_again(small, put, tmp_path, monkeypatch):
    files = put(small)
    with monkeypatch.context() as broken:
        broken.setattr(type(files), "get_file", fail)
        with pytest.raises(PatchIndexError, match=r"cannot be copied \(ConnectionError: no network\)"):
            pi.open_index(URL)
    pi.open_index(URL)
    (tmp_path / "file").touch()
    monkeypatch.setenv("PATCHINDEX_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be written to.*PATCHINDEX_CACHE"):
        pi.open_index(URL)


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


def flip(file, at):
    """Change a byte of a file in place, as a failing disk does."""
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def means_of(index):
    x = torch.ones(1, 1, 14, 14)
    return [
        pi.ScoreMachine(index, estimator=name).posterior_mean(x, 0.5).mean
        for name in ("exact", "topk", "auto")
    ]


@pytest.mark.parametrize(
    ("part", "at"), [("images", 50), ("faiss", 10), ("faiss", -2000)], ids=["images", "head", "list"]
)
def test_a_copy_that_is_damaged_after_opening_is_fetched_again_once(small, put, part, at):
    files = put(small)
    expected = means_of(pi.open_index(small))
    remote = pi.open_index(URL)
    large = raw_path(
        remote.path if part == "images" else remote.scale(3).path, part, 4 if part == "images" else 1
    )
    at %= large.stat().st_size
    for found, wanted in zip(means_of(remote), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    remote = pi.open_index(URL)
    remote.scale(3)
    flip(large, at)
    for found, wanted in zip(means_of(remote), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    again = pi.open_index(URL)  # the copy on disk is intact again
    again.scale(3)
    again._remote.mend = fail
    means_of(again)
    again = pi.open_index(URL)
    again.scale(3)
    flip(large, at)
    there = (
        "/s.zarr/" + large.relative_to(remote.path if part == "images" else remote.scale(3).path).as_posix()
    )
    there = there if part == "images" else there.replace("s.zarr", "s.zarr/scales/k003")
    content = bytearray(files.cat_file(there))
    content[at] ^= 1
    files.pipe_file(there, bytes(content))
    with pytest.raises(StoreError, match=r"is damaged .checksum mismatch.; copy the store there again"):
        means_of(again)
    with pytest.raises(StoreError, match="checksum mismatch"):  # it is not fetched again and again
        means_of(again)


def test_a_file_that_arrives_damaged_is_fetched_once_more(small, put, monkeypatch):
    files = put(small)
    get, calls = type(files).get_file, []

    def first_damaged(self, source, target):
        get(self, source, target)
        calls.append(source)
        if calls.count(source) == 1:
            flip(Path(target), 0)

    monkeypatch.setattr(type(files), "get_file", first_damaged)
    means_of(pi.open_index(URL))
    assert {calls.count(source) for source in calls} == {2}


def test_a_damaged_copy_is_refused_without_a_network(small, put, monkeypatch):
    files = put(small)
    copy = pi.open_index(URL)
    copy.scale(3)
    monkeypatch.setattr(type(files), "cat_file", fail)
    offline = pi.open_index(URL)
    offline.scale(3)
    flip(raw_path(copy.path, "images", 4), 50)
    with pytest.raises(StoreError, match="images 0 to 39 are damaged"):
        means_of(offline)


def test_a_copy_that_becomes_shorter_is_fetched_again(small, put):
    put(small)
    remote = pi.open_index(URL)
    expected = means_of(remote)
    for file in (raw_path(remote.path, "images", 4), raw_path(remote.scale(3).path, "faiss", 1)):
        os.truncate(file, 10)
    for found, wanted in zip(means_of(remote), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
