"""The best lists and codes of each query, against all scores in float64."""

from __future__ import annotations

import numpy as np
import pytest

from patchindex.kernels.codes import Queries
from patchindex.kernels.nearest import Best, Scratch, best_codes, best_lists, list_tiles, patch_ids
from patchindex.kernels.simd import aligned

DIMS, CELLS = 12, 5


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def kept(best, q):
    return set(best.item[q, : best.held[q]].tolist())


def visits_of(rng, groups, queries):
    """Return the queries that visit each group, as a mask and as the arguments of the kernels."""
    visits = rng.random((groups, queries)) < 0.6
    start = np.concatenate([[0], np.cumsum(visits.sum(1))])
    return visits, start, np.nonzero(visits)[1].astype(np.int32)


@pytest.mark.parametrize("keep", [1, 7, 40])
def test_best_lists(rng, keep):
    bounds = np.cumsum([0, 70, 3, 64, 200, 1])
    means = rng.standard_normal((bounds[-1], DIMS)).astype(np.float32)
    variances = rng.uniform(0.05, 0.5, means.shape).astype(np.float32)
    patches = rng.integers(0, 3, len(means))  # a third of the lists is empty
    a, beta = 0.8, 0.36
    first = np.concatenate([[0], np.cumsum(-(-np.diff(bounds) // 64))])
    tiles, offsets = aligned(first[-1] * 2 * DIMS * 64), aligned(first[-1] * 64)
    for cells in ((0, 2), (2, CELLS)):
        list_tiles(means, variances, patches, first, bounds, cells, a, beta, tiles, offsets)
    z = rng.standard_normal((9, DIMS)).astype(np.float32)
    visits, start, visitors = visits_of(rng, CELLS, 9)
    u = np.concatenate([z * z, z], 1).reshape(-1)
    best = Best.none(9, keep)
    best_lists(tiles, offsets, first, bounds, u, 2 * DIMS, start, visitors, keep, best, Scratch.of(1, keep))
    v = beta + a * a * variances.astype(np.float64) / 4
    for q in range(9):
        score = -0.5 * (np.square(z[q] - a * means) / v + np.log(v / beta)).sum(1)
        there = np.repeat(visits[:, q], np.diff(bounds)) & (patches > 0)
        order = np.flatnonzero(there)[np.argsort(-score[there])]
        assert kept(best, q) == set(order[:keep].tolist())
        found = best.score[q, : best.held[q]]
        np.testing.assert_allclose(np.sort(found), np.sort(score[order[:keep]]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("keep", [1, 20, 3000])
@pytest.mark.parametrize("label", [None, 1])
def test_best_codes(store, rng, keep, label):
    scale = store.scale(5)
    c = scale.geometry.n_classes // 2
    codes, ids_at = scale.codes(c, label)
    lists, dims = len(codes.size), codes.dims
    z = rng.standard_normal((6, dims)).astype(np.float32)
    visits, start, visitors = visits_of(rng, lists, 6)
    best, scanned = Best.none(6, keep), np.zeros(6, np.int64)
    best_codes(codes, Queries.of(codes, z, 0.7), start, visitors, keep, best, Scratch.of(dims, keep), scanned)
    ids = np.empty((6, keep), np.int64)
    patch_ids(codes.file, ids_at, best, ids)
    values = {}
    for at in range(lists):
        n, offset = int(codes.size[at]), int(codes.offset[at])
        raw = codes.file[offset : offset + n * dims].reshape(n, dims)
        values[at] = (raw + 0.5) * codes.step[:dims].astype(np.float64) + codes.low[:dims]
    np.testing.assert_array_equal(scanned, codes.size @ visits)
    for q in range(6):
        mine = np.flatnonzero(visits[:, q])
        score = np.concatenate([values[at] @ z[q] - 0.7 * np.square(values[at]).sum(1) for at in mine])
        number = np.concatenate([(at << 32) + np.arange(len(values[at])) for at in mine])
        least = np.sort(score)[::-1][min(keep, len(score)) - 1]
        # Codes may score the same as the first code that is left out.
        assert {int(i) for i in number[score > least + 1e-3]} <= kept(best, q)
        assert kept(best, q) <= {int(i) for i in number[score > least - 1e-3]}
        held = ids[q][ids[q] >= 0]
        assert len(held) == best.held[q] == len(set(held.tolist())) <= keep
        images = held // scale.geometry.patches_per_image
        lo, hi = store.training.range_of(None if label is None else store.attributes["labels"][label])
        assert ((images >= lo) & (images < hi)).all()


def test_search_of_no_list_finds_nothing(store):
    codes, ids_at = store.scale(3).codes(0)
    best = Best.none(2, 5)
    best_codes(
        codes, Queries.of(codes, np.zeros((2, codes.dims)), 1.0), np.zeros(len(codes.size) + 1, np.int64),
        np.empty(0, np.int32), 5, best, Scratch.of(codes.dims, 5),
        np.zeros(2, np.int64),
    )  # fmt: skip
    ids = np.empty((2, 5), np.int64)
    patch_ids(codes.file, ids_at, best, ids)
    assert (ids == -1).all()
