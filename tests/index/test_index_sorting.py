"""Sorting by list on disk: everything comes back once, in order, whatever the buckets."""

from __future__ import annotations

import numpy as np
import pytest

from patchindex.index import sorting
from patchindex.index.sorting import ListSorter


@pytest.mark.parametrize("bucket_bytes", [1, 1000, 1 << 20])
def test_lists_ascend_and_patches_of_a_list_keep_their_order(tmp_path, monkeypatch, bucket_bytes):
    monkeypatch.setattr(sorting, "BUCKET_BYTES", bucket_bytes)
    rng = np.random.default_rng(0)
    lists = rng.integers(0, 40, 1000)
    codes = rng.integers(0, 256, (1000, 5), np.uint8)
    with ListSorter(tmp_path / "sort", 50, 5, 1000) as sorter:
        for start in range(0, 1000, 130):
            rows = slice(start, start + 130)
            sorter.add(lists[rows], np.arange(1000)[rows], codes[rows])
        found = np.concatenate(list(sorter.buckets()))
    order = np.argsort(lists, kind="stable")
    np.testing.assert_array_equal(found["list"], lists[order])
    np.testing.assert_array_equal(found["id"], order)
    np.testing.assert_array_equal(found["code"], codes[order])
    assert list((tmp_path / "sort").iterdir()) == []


def test_a_bucket_holds_whole_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "BUCKET_BYTES", 500)
    lists = np.arange(900) % 30
    with ListSorter(tmp_path / "sort", 30, 2, 900) as sorter:
        sorter.add(lists, np.arange(900), np.zeros((900, 2), np.uint8))
        buckets = list(sorter.buckets())
    assert len(buckets) > 1
    for bucket in buckets:
        assert (np.bincount(bucket["list"])[np.unique(bucket["list"])] == 30).all()
