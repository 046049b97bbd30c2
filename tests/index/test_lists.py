"""Inverted lists: their numbers per position class, k-means, and search inside a class."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from patchindex.index.lists import MIN_PATCHES_A_LIST, InvertedLists, list_counts, most_lists, train_lists

CPU = torch.device("cpu")


def flat(centroids, bounds):
    """Lists with one cell a class."""
    cells = [centroids[lo:hi].mean(0) for lo, hi in pairwise(bounds)]
    return InvertedLists(centroids, bounds, np.stack(cells), bounds, CPU)


@pytest.mark.parametrize("lists", [None, 1, 7, 100, 10**9])
@pytest.mark.parametrize("patches", [[1], [31], [5000], [100_000, 32, 1, 640, 100_000]])
def test_every_class_has_a_list_and_no_list_is_small(patches, lists):
    patches = np.array(patches)
    counts = list_counts(patches, lists or most_lists(patches.sum()))
    assert (counts >= 1).all()
    assert ((counts == 1) | (counts * MIN_PATCHES_A_LIST <= patches)).all()


def test_lists_are_shared_out_in_proportion():
    assert list_counts(np.array([3_000_000, 1_000_000]), 4000).tolist() == [3000, 1000]
    assert list_counts(np.array([10_000]), 50).tolist() == [50]
    assert [most_lists(n) for n in (1, 1_000_000, 10**9)] == [1, 3906, 131_072]


def test_nearest_searches_only_lists_of_the_class():
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((12, 8)).astype(np.float32)
    bounds = np.array([0, 1, 6, 12])
    vectors = rng.standard_normal((100, 8)).astype(np.float32)
    classes = rng.integers(0, 3, 100)
    found = flat(centroids, bounds).nearest(vectors, classes, 6)
    assert found.shape == (100, 6)
    for vector, c, row in zip(vectors, classes, found, strict=True):
        distances = ((vector - centroids[bounds[c] : bounds[c + 1]]) ** 2).sum(1)
        expected = (np.argsort(distances) + bounds[c]).tolist()
        assert row.tolist() == expected + [-1] * (6 - len(expected))


def test_nearest_with_one_class_is_plain_search():
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((9, 4)).astype(np.float32)
    vectors = rng.standard_normal((50, 4)).astype(np.float32)
    found = flat(centroids, np.array([0, 9])).nearest(vectors, np.zeros(50, int), 3)
    distances = ((vectors[:, None] - centroids) ** 2).sum(2)
    np.testing.assert_array_equal(found, np.argsort(distances, 1)[:, :3])


def test_train_lists_finds_clusters_inside_each_class():
    rng = np.random.default_rng(0)
    # Class 0 has clusters at +-10, class 1 at +-20.
    middles = np.repeat([10.0, -10.0, 20.0, -20.0], 100)[:, None]
    sample = (middles + rng.standard_normal((400, 4))).astype(np.float32)
    classes = np.repeat([0, 0, 1, 1], 100)
    order = rng.permutation(400)
    lists = train_lists(sample[order], classes[order], np.array([2, 2]), 0, CPU)
    assert lists.bounds.tolist() == [0, 2, 4]
    assert lists.centroids.dtype == np.float32
    means = lists.centroids.mean(1)
    # Means of 64 or more points with a spread of 1: 4 standard errors.
    np.testing.assert_allclose(sorted(means[:2]), [-10, 10], atol=0.5)
    np.testing.assert_allclose(sorted(means[2:]), [-20, 20], atol=0.5)
    assigned = lists.nearest(sample, classes, 1)[:, 0]
    assert (np.bincount(assigned, minlength=4) == 100).all()


def test_train_lists_is_repeatable():
    sample = np.random.default_rng(0).standard_normal((640, 8)).astype(np.float32)
    made = [
        train_lists(sample, np.zeros(640, int), np.array([10]), seed, CPU).centroids for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()


def test_assign_with_one_cell_is_the_nearest_list_of_the_class():
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((12, 8)).astype(np.float32)
    vectors = rng.standard_normal((500, 8)).astype(np.float32)
    classes = rng.integers(0, 3, 500)
    lists = flat(centroids, np.array([0, 1, 6, 12]))
    found = lists.assign(torch.from_numpy(vectors), classes)
    np.testing.assert_array_equal(found, lists.nearest(vectors, classes, 1)[:, 0])


@pytest.mark.parametrize("at_once", [7, 1 << 16])
def test_assign_with_cells_is_the_nearest_list_of_the_two_nearest_cells(monkeypatch, at_once):
    monkeypatch.setattr("patchindex.index.lists.ASSIGNED_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    centroids, cells = (rng.standard_normal((n, 4)).astype(np.float32) for n in (40, 5))
    cell_bounds = np.array([0, 3, 20, 21, 30, 40])
    vectors = rng.standard_normal((200, 4)).astype(np.float32)
    lists = InvertedLists(centroids, np.array([0, 40]), cells, cell_bounds, CPU)
    found = lists.assign(torch.from_numpy(vectors), np.zeros(200, int))
    for vector, list_ in zip(vectors, found, strict=True):
        near = np.argsort(((vector - cells) ** 2).sum(1))[:2]
        allowed = np.concatenate([np.arange(*cell_bounds[c : c + 2]) for c in near])
        assert list_ == allowed[((vector - centroids[allowed]) ** 2).sum(1).argmin()]


def test_training_by_cells_is_nearly_as_good_as_plain_kmeans(real_images, monkeypatch):
    """At most 10 % more squared distance than k-means over all lists at once."""
    pixels = real_images(300, 24)[0].reshape(300 * 24, 24).astype(np.float32)
    classes = np.repeat([0, 1], len(pixels) // 2)
    made = {}
    for without in (10, 1000):
        monkeypatch.setattr("patchindex.index.lists.LISTS_WITHOUT_CELLS", without)
        lists = train_lists(pixels, classes, np.array([100, 60]), 0, CPU)
        assert lists.bounds.tolist() == [0, 100, 160]
        assert lists.cell_bounds[-1] == len(lists.centroids) == 160
        assert set(lists.bounds) <= set(lists.cell_bounds)
        assigned = lists.assign(torch.from_numpy(pixels), classes)
        assert ((assigned >= 100) == (classes == 1)).all()
        made[without] = np.square(pixels - lists.centroids[assigned]).sum()
    assert len(lists.cells) == 2
    assert made[10] < 1.1 * made[1000]
