"""Inverted lists: their numbers per position class, k-means, and search inside a class."""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch

from patchindex.index.lists import MIN_PATCHES_PER_LIST, InvertedLists, list_counts, most_lists, train_lists
from patchindex.runtime import require_faiss, threads

CPU = torch.device("cpu")


@pytest.mark.parametrize("lists", [None, 1, 7, 100, 10**9])
@pytest.mark.parametrize("patches", [[1], [31], [5000], [100_000, 32, 1, 640, 100_000]])
def test_every_class_has_a_list_and_no_list_is_small(patches, lists):
    patches = np.array(patches)
    counts = list_counts(patches, lists or most_lists(patches.sum()))
    assert (counts >= 1).all()
    assert ((counts == 1) | (counts * MIN_PATCHES_PER_LIST <= patches)).all()


def test_lists_are_shared_out_in_proportion():
    assert list_counts(np.array([3_000_000, 1_000_000]), 4000).tolist() == [3000, 1000]
    assert list_counts(np.array([10_000]), 50).tolist() == [50]
    assert [most_lists(n) for n in (1, 1_000_000, 10**9)] == [1, 3906, 131_072]


@pytest.mark.parametrize("bounds", [[0, 1, 6, 12], [0, 12]])
def test_nearest_searches_only_lists_of_the_class(bounds):
    rng, bounds = np.random.default_rng(0), np.array(bounds)
    centroids = rng.standard_normal((12, 8)).astype(np.float32)
    vectors = rng.standard_normal((100, 8)).astype(np.float32)
    classes = rng.integers(0, len(bounds) - 1, 100)
    cells = np.stack([centroids[lo:hi].mean(0) for lo, hi in pairwise(bounds)])
    found = InvertedLists(centroids, bounds, cells, bounds, CPU).nearest(vectors, classes, 6)
    assert found.shape == (100, 6)
    for vector, c, row in zip(vectors, classes, found, strict=True):
        distances = ((vector - centroids[bounds[c] : bounds[c + 1]]) ** 2).sum(1)
        expected = (np.argsort(distances) + bounds[c]).tolist()[:6]
        assert row.tolist() == expected + [-1] * (6 - len(expected))


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


def test_train_lists_gives_equal_centroids_on_any_number_of_threads(real_images):
    pixels = real_images(200, 16)[0].reshape(200 * 16, 16).astype(np.float32)
    classes, counts = np.arange(len(pixels)) % 2, np.array([150, 40])  # the first class has cells
    made = []
    for number in (1, 2, 3):
        with threads(number):
            made.append(train_lists(pixels, classes, counts, 0, CPU))
    for other in made[1:]:
        for name in ("centroids", "cells", "cell_bounds", "bounds"):
            np.testing.assert_array_equal(getattr(other, name), getattr(made[0], name))


def test_training_ends_its_threads_when_its_progress_raises():
    sample = np.random.default_rng(0).standard_normal((8000, 8)).astype(np.float32)
    classes, counts, calls = np.zeros(len(sample), int), np.array([200]), []
    before = require_faiss().omp_get_max_threads()

    def interrupt(done, total):
        calls.append(done / total)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lists(sample, classes, counts, 0, CPU, interrupt)
    assert len(calls) == 3
    assert not [t for t in threading.enumerate() if t.name.startswith("patchindex-k-means")]
    assert require_faiss().omp_get_max_threads() == before
    shares = []
    lists = train_lists(sample, classes, counts, 0, CPU, lambda done, total: shares.append(done / total))
    assert len(lists.centroids) == 200
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_training_by_cells_is_nearly_as_good_as_plain_kmeans(real_images):
    """At most 10 % more squared distance than k-means over all lists at once."""
    pixels = real_images(300, 24)[0].reshape(300 * 24, 24).astype(np.float32)
    classes, counts = np.repeat([0, 1], len(pixels) // 2), np.array([100, 80])
    lists = train_lists(pixels, classes, counts, 0, CPU)
    assert lists.bounds.tolist() == [0, 100, 180]
    assert lists.cell_bounds[-1] == len(lists.centroids) == 180
    assert set(lists.bounds) <= set(lists.cell_bounds)
    assert len(lists.cells) > 2
    assigned = lists.assign(torch.from_numpy(pixels), classes)
    assert ((assigned >= 100) == (classes == 1)).all()
    plain = 0.0
    for c, count in enumerate(counts.tolist()):
        kmeans = require_faiss().Kmeans(24, count, niter=10, seed=0)
        kmeans.train(pixels[classes == c])
        plain += kmeans.assign(pixels[classes == c])[0].sum()
    assert np.square(pixels - lists.centroids[assigned]).sum() < 1.1 * plain
