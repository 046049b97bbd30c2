"""The compiled assignment of patches to lists, against matrix products and brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from patchindex.index.lists import TILES_HELD, InvertedLists
from patchindex.kernels.assign import Tiles
from patchindex.kernels.codes import CODES, NEVER
from patchindex.runtime import threads as use_threads

CPU = torch.device("cpu")


def made(rng, dims, by_class):
    """Lists of some classes, given the sizes of the cells of each."""
    cells, centroids, bounds, cell_bounds = [], [], [0], [0]
    for sizes in by_class:
        for size in sizes:
            cells.append(5 * rng.standard_normal(dims))
            centroids.append(cells[-1] + rng.standard_normal((size, dims)))
            cell_bounds.append(cell_bounds[-1] + size)
        bounds.append(cell_bounds[-1])
    return InvertedLists(
        np.concatenate(centroids).astype(np.float32),
        np.array(bounds),
        np.stack(cells).astype(np.float32),
        np.array(cell_bounds),
        CPU,
    )


def by_brute_force(inverted, vectors, classes):
    """The nearest list of the two nearest cells, in float64."""
    found = []
    for v, c in zip(vectors.astype(np.float64), classes, strict=True):
        first, last = np.searchsorted(inverted.cell_bounds, inverted.bounds[c : c + 2])
        near = first + np.argsort(np.square(inverted.cells[first:last] - v).sum(1), kind="stable")[:2]
        lists = np.concatenate([np.arange(*inverted.cell_bounds[i : i + 2]) for i in near])
        found.append(lists[np.square(inverted.centroids[lists] - v).sum(1).argmin()])
    return np.array(found)


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("dims", [1, 8, 13, 56])
@pytest.mark.parametrize(
    "by_class", [[[1]], [[3]], [[64, 65, 1, 130]], [[5, 70], [1], [2, 2, 2]], [[1], [5], [6]]]
)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 401])
def test_assignment_is_the_nearest_list_of_the_two_nearest_cells(threads, dims, by_class, n):
    rng = np.random.default_rng(0)
    inverted = made(rng, dims, by_class)
    classes = rng.integers(0, len(by_class), n)
    some = rng.integers(0, len(inverted.cells), n)
    vectors = (inverted.cells[some] + 2 * rng.standard_normal((n, dims))).astype(np.float32)
    with use_threads(threads):
        found = inverted.assign(torch.from_numpy(vectors), classes)
    expected = by_brute_force(inverted, vectors, classes)
    # Two lists may be as near as float32 can tell.
    same = found == expected
    near, nearest = (np.square(vectors - inverted.centroids[lists]).sum(1) for lists in (found, expected))
    assert (same | (near <= nearest * (1 + 1e-4) + 1e-4)).all()
    assert (~same).sum() <= max(1, n // 100)
    for c in range(len(by_class)):
        mine = classes == c
        if mine.any():
            by_torch = inverted._assign_by_torch(torch.from_numpy(vectors[mine]), c).numpy()
            assert (by_torch != found[mine]).sum() <= max(1, n // 100)


@pytest.mark.parametrize("n_classes", [1, 3])
def test_assignment_does_not_depend_on_the_other_vectors_or_threads(n_classes):
    rng = np.random.default_rng(1)
    inverted = made(rng, 24, [[40] * 30] * n_classes)
    vectors = torch.from_numpy((3 * rng.standard_normal((2000, 24))).astype(np.float32))
    classes = rng.choice(n_classes, 2000)
    with use_threads(1):
        whole = inverted.assign(vectors, classes)
    edges = pairwise([0, 1, 7, 900, 2000])
    with use_threads(3):
        pieces = [inverted.assign(vectors[lo:hi], classes[lo:hi]) for lo, hi in edges]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    order = rng.permutation(2000)
    again = inverted.assign(vectors[torch.from_numpy(order)], classes[order])
    np.testing.assert_array_equal(again, whole[order])


def test_first_of_equal_centroids_is_assigned():
    centroids = np.ones((130, 3), np.float32)
    inverted = InvertedLists(centroids, np.array([0, 130]), centroids[:1], np.array([0, 130]), CPU)
    assert inverted.assign(torch.ones(5, 3), np.zeros(5, np.int64)).tolist() == [0] * 5


def test_tiles_hold_each_centroid_once():
    centroids = np.arange(70 * 2, dtype=np.float32).reshape(70, 2)
    tiles = Tiles.of(centroids, np.array([0, 3, 3, 70]))
    assert tiles.first.tolist() == [0, 1, 1, 3]
    values = tiles.values.reshape(3, 2, CODES)
    np.testing.assert_array_equal(values[0, :, :3].T, centroids[:3])
    np.testing.assert_array_equal(np.concatenate([values[1].T, values[2].T])[:67], centroids[3:])
    assert (tiles.offsets < NEVER).sum() == 3 * CODES - 70


def test_number_of_kept_tiles_is_bounded():
    rng = np.random.default_rng(2)
    inverted = made(rng, 4, [[2]] * (TILES_HELD + 10))
    classes = np.tile(np.arange(TILES_HELD + 10), 2)
    vectors = rng.standard_normal((len(classes), 4)).astype(np.float32)
    found = inverted.assign(torch.from_numpy(vectors), classes)
    np.testing.assert_array_equal(found, by_brute_force(inverted, vectors, classes))
    assert len(inverted._tiles_of) <= TILES_HELD
