"""Shards return every patch once and in order, whatever their size, and find damaged files."""

from __future__ import annotations

import os

import numpy as np
import pytest

from patchindex.build import shards as module
from patchindex.build.shards import Shards
from patchindex.errors import StoreError

LISTS, IMAGES, PER_IMAGE = 50, 100, 10


def filled(folder):
    rng = np.random.default_rng(0)
    lists = rng.integers(0, 40, IMAGES * PER_IMAGE)  # the last lists stay empty
    codes = rng.integers(0, 256, (len(lists), 5), np.uint8)
    (folder / "shards").mkdir()
    shards = Shards(folder / "shards", LISTS, 5, np.arange(IMAGES), PER_IMAGE)
    for i in range(len(shards)):
        start, stop = (PER_IMAGE * image for image in shards.images(i))
        shards.write(i, lists[start:stop], codes[start:stop], 0.5)
    return shards, lists, codes


@pytest.fixture
def set_bytes(monkeypatch):
    """A function that sets the size of shards and buckets."""
    monkeypatch.setattr(module, "PIECE_BYTES", 0)
    return lambda size: monkeypatch.setattr(module, "SHARD_BYTES", size)


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_lists_ascend_and_patches_of_a_list_keep_their_order(tmp_path, set_bytes, size):
    set_bytes(size)
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


def test_shards_and_buckets_keep_to_their_size(tmp_path, set_bytes):
    set_bytes(1000)
    shards, lists, _ = filled(tmp_path)
    record = 13
    assert [stop - start for start, stop in map(shards.images, range(len(shards)))] == [7] * 14 + [2]
    assert all(len(b.ids) * record <= 1000 for b in shards.merged())
    assert len(list(shards.merged())) >= len(lists) * record / 1000


class Old:
    """Patches that were encoded before; their ids lie between the ids of the shards."""

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
def test_other_patches_are_merged_by_id_even_in_parts_of_a_list(tmp_path, set_bytes, shard_bytes):
    set_bytes(shard_bytes)
    rng = np.random.default_rng(3)
    lists = np.where(rng.random(1000) < 0.6, 7, rng.integers(0, LISTS, 1000))  # most patches are in one list
    codes = rng.integers(0, 256, (1000, 5), np.uint8)
    new = np.repeat(rng.permuted(np.repeat([True, False], [30, 70])), 10)  # ten patches per image
    (tmp_path / "shards").mkdir()
    old = Old(lists[~new], codes[~new], np.flatnonzero(~new))
    shards = Shards(tmp_path / "shards", LISTS, 5, np.flatnonzero(new[::10]), 10, old)
    for i in range(len(shards)):
        rows = np.flatnonzero(new)[slice(*(10 * image for image in shards.images(i)))]
        shards.write(i, lists[rows], codes[rows], 0.0)
    buckets = list(shards.merged())
    order = np.argsort(lists, kind="stable")
    np.testing.assert_array_equal(np.concatenate([b.ids for b in buckets]), order)
    np.testing.assert_array_equal(np.concatenate([b.codes for b in buckets]), codes[order])
    assert max(len(b.ids) for b in buckets) * 13 <= max(26, shard_bytes)


def test_missing_truncated_and_damaged_shards_are_found(tmp_path, set_bytes):
    set_bytes(1000)
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


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    shards = Shards(tmp_path / "shards", 3, 1, np.arange(2), 1)
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shards.write(0, np.array([1, 1]), np.zeros((2, 1), np.uint8), 0.0)
    assert list((tmp_path / "shards").iterdir()) == []
    assert shards.missing() == [0]
