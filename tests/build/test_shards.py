"""Shards: everything comes back once, in order, whatever their size, and what is not whole is told."""

from __future__ import annotations

import numpy as np
import pytest

from patchindex.build import shards as module
from patchindex.build.shards import Shards
from patchindex.errors import StoreError

LISTS, IMAGES, PER_IMAGE = 50, 100, 10


def filled(folder):
    rng = np.random.default_rng(0)
    lists = rng.integers(0, 40, IMAGES * PER_IMAGE)  # the last ones stay empty
    codes = rng.integers(0, 256, (len(lists), 5), np.uint8)
    (folder / "shards").mkdir()
    shards = Shards(folder / "shards", LISTS, 5, images=IMAGES, patches_per_image=PER_IMAGE)
    for i in range(len(shards)):
        start, stop = (PER_IMAGE * image for image in shards.images(i))
        shards.write(i, lists[start:stop], codes[start:stop], 0.5)
    return shards, lists, codes


@pytest.fixture(params=[1, 1000, 1 << 20])
def size(request, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", request.param)
    monkeypatch.setattr(module, "PIECE_BYTES", 0)


def test_lists_ascend_and_patches_of_a_list_keep_their_order(tmp_path, size):
    shards, lists, codes = filled(tmp_path)
    assert shards.missing() == []
    assert shards.seconds() == 0.5 * len(shards)
    np.testing.assert_array_equal(shards.sizes(), np.bincount(lists, minlength=LISTS))
    buckets = list(shards.merged())
    order = np.argsort(lists, kind="stable")
    np.testing.assert_array_equal(np.concatenate([b.ids for b in buckets]), order)
    np.testing.assert_array_equal(np.concatenate([b.codes for b in buckets]), codes[order])
    sizes = np.zeros(LISTS, int)
    for bucket in buckets:
        sizes[bucket.first : bucket.first + len(bucket.sizes)] += bucket.sizes
        for number, ids, of_list in bucket.lists():
            assert (lists[ids] == number).all()
            np.testing.assert_array_equal(of_list, codes[ids])
    np.testing.assert_array_equal(sizes, shards.sizes())
    shards.remove()
    assert list(tmp_path.iterdir()) == []


def test_shards_and_buckets_are_no_larger_than_they_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 1000)
    monkeypatch.setattr(module, "PIECE_BYTES", 0)
    shards, lists, _ = filled(tmp_path)
    record = 13
    assert [stop - start for start, stop in map(shards.images, range(len(shards)))] == [7] * 14 + [2]
    assert all(len(b.ids) * record <= 1000 for b in shards.merged())
    assert len(list(shards.merged())) >= len(lists) * record / 1000


class Old:
    """Lists of patches that were encoded before; their ids lie between those of the shards."""

    def __init__(self, lists, codes, ids):
        self.order = np.argsort(lists, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(lists, minlength=LISTS))])
        self.ids, self.codes = ids, codes

    def sizes(self):
        return np.diff(self.starts)

    def part(self, c, start, stop):
        rows = self.order[self.starts[c] + start : self.starts[c] + stop]
        return self.ids[rows], self.codes[rows]


@pytest.mark.parametrize("shard_bytes", [26, 1000, 1 << 20])
def test_others_are_merged_with_them_also_where_a_list_comes_in_parts(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(module, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(module, "PIECE_BYTES", 0)
    rng = np.random.default_rng(3)
    lists = np.where(rng.random(1000) < 0.6, 7, rng.integers(0, LISTS, 1000))  # most are in one
    codes = rng.integers(0, 256, (1000, 5), np.uint8)
    new = np.repeat(rng.permuted(np.repeat([True, False], [30, 70])), 10)  # images of ten patches
    (tmp_path / "shards").mkdir()
    shards = Shards(tmp_path / "shards", LISTS, 5, images=np.flatnonzero(new[::10]), patches_per_image=10)
    for i in range(len(shards)):
        rows = np.flatnonzero(new)[slice(*(10 * image for image in shards.images(i)))]
        shards.write(i, lists[rows], codes[rows], 0.0)
    buckets = list(shards.merged(Old(lists[~new], codes[~new], np.flatnonzero(~new))))
    order = np.argsort(lists, kind="stable")
    np.testing.assert_array_equal(np.concatenate([b.ids for b in buckets]), order)
    np.testing.assert_array_equal(np.concatenate([b.codes for b in buckets]), codes[order])
    assert max(len(b.ids) for b in buckets) * 13 <= max(26, shard_bytes)


def test_what_is_missing_cut_off_or_damaged_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 1000)
    monkeypatch.setattr(module, "PIECE_BYTES", 0)
    shards, *_ = filled(tmp_path)
    shards._path(2).unlink()
    whole = shards._path(5).read_bytes()
    shards._path(5).write_bytes(whole[:-20])
    rng = np.random.default_rng(1)
    for position in [0, len(whole) - 1, *rng.integers(0, len(whole), 20)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        shards._path(7).write_bytes(damaged)
        assert shards.missing() == [2, 5, 7]
    with pytest.raises((StoreError, FileNotFoundError)):
        list(shards.merged())


def test_what_could_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    shards = Shards(tmp_path / "shards", 3, 1, images=2, patches_per_image=1)
    monkeypatch.setattr(module.google_crc32c, "Checksum", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shards.write(0, np.array([1, 1]), np.zeros((2, 1), np.uint8), 0.0)
    assert list((tmp_path / "shards").iterdir()) == []
    assert shards.missing() == [0]
