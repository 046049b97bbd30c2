"""Copies of remote stores in the cache: renewed when the store changes, mended when they are damaged."""

from __future__ import annotations

import os
import shutil
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from remote import URL, copies, fail

import patchindex as pi
from patchindex.errors import InputError, PatchIndexError, StoreError
from patchindex.store.checksums import CURVE, MANIFEST
from patchindex.store.raw import raw_path

pytestmark = pytest.mark.filterwarnings("ignore:.* is used as it is:patchindex.PatchIndexWarning")


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
        with pytest.warns(pi.PatchIndexWarning, match="the copy in .* is used as it is; check the URL"):
            away = pi.open_index(URL)
        assert away.scales == (3,)
        with pytest.raises(InputError, match="no network"):
            away.scale(3)  # not in the cache
    index.scale(3)
    for name in ("cat_file", "get_file"):
        monkeypatch.setattr(type(files), name, fail)
    with pytest.warns(pi.PatchIndexWarning, match="the copy in .* is used as it is; check the URL"):
        there = pi.open_index(URL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning is given once
        assert there.scale(3).path == index.scale(3).path
        assert there.info()["indexes"]["3"]["lists"] == index.scale(3).attributes["lists"]
        assert pi.ScoreMachine(there, estimator="auto").index is there
    with pytest.warns(pi.PatchIndexWarning, match="the copy in .* is used as it is; check the URL"):
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


@pytest.mark.parametrize(("status", "read"), [(403, True), (404, False), (500, False)])
def test_a_bucket_that_forbids_a_file_that_does_not_exist_is_read(small, put, monkeypatch, status, read):
    """A bucket that may not be listed answers 403, and not 404, for a missing file."""
    files = put(small)
    cat_file = type(files).cat_file

    class AnswerError(Exception):
        pass

    def answer(self, path, *args, **options):
        if path.endswith(CURVE):
            error = AnswerError("no such key")
            error.status = status
            raise error
        return cat_file(self, path, *args, **options)

    monkeypatch.setattr(type(files), "cat_file", answer)
    if read:
        assert "operating_curve" not in pi.open_index(URL).scale(3).attributes
    else:
        with pytest.raises(PatchIndexError, match=r"cannot be read .*no such key"):
            pi.open_index(URL).scale(3)


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
    again._mend = fail
    again.scale(3)
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


def test_threads_that_find_the_same_damage_all_go_on(small, put, monkeypatch):
    """One of them fetches the file again, and the others wait for it."""
    files = put(small)
    expected = means_of(pi.open_index(small))[0]
    remote = pi.open_index(URL)
    get, calls = type(files).get_file, []

    def slow(self, source, target):
        calls.append(source)
        time.sleep(0.3)
        get(self, source, target)

    flip(raw_path(remote.path, "images", 4), 50)
    monkeypatch.setattr(type(files), "get_file", slow)
    barrier = threading.Barrier(4)

    def first_images(_):
        barrier.wait()
        remote.check_images(0, 40)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(first_images, range(4)))
    assert len(calls) == 1
    x = torch.ones(1, 1, 14, 14)
    found = pi.ScoreMachine(remote, estimator="exact").posterior_mean(x, 0.5).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_another_thread_tries_again_after_a_failed_fetch(small, put, monkeypatch):
    files = put(small)
    remote = pi.open_index(URL)
    flip(raw_path(remote.path, "images", 4), 50)
    with monkeypatch.context() as broken:
        broken.setattr(type(files), "get_file", fail)
        with pytest.raises(PatchIndexError, match="cannot be copied"):
            remote.check_images(0, 40)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(remote.check_images, 0, 40).result()


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
