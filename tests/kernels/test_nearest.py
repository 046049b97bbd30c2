"""The best lists and codes of each query, against all scores in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import llvmlite.binding
import numpy as np
import pytest

import patchindex as pi
from patchindex.kernels.codes import Queries
from patchindex.kernels.nearest import Best, Scratch, best_codes, best_lists, list_tiles, patch_ids
from patchindex.kernels.simd import aligned

DIMS, CELLS = 12, 5


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def kept(best, q):
    return set(best.item[q, : best.held[q]].tolist())


def table(rng, sizes):
    """Lists of random moments in cells of these sizes."""
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    n = int(bounds[-1])
    means = rng.standard_normal((n, DIMS)).astype(np.float32)
    variances = rng.uniform(0.05, 0.5, (n, DIMS)).astype(np.float32)
    return bounds, means, variances


@pytest.mark.parametrize("keep", [1, 7, 40])
def test_best_lists(rng, keep):
    bounds, means, variances = table(rng, [70, 3, 64, 200, 1])
    patches = rng.integers(0, 3, len(means))  # a third of the lists is empty
    a, beta = 0.8, 0.36
    first = np.concatenate([[0], np.cumsum(-(-np.diff(bounds) // 64))])
    tiles, offsets = aligned(first[-1] * 2 * DIMS * 64), aligned(first[-1] * 64)
    for cells in ((0, 2), (2, CELLS)):
        list_tiles(means, variances, patches, first, bounds, cells, a, beta, tiles, offsets)
    z = rng.standard_normal((9, DIMS)).astype(np.float32)
    visits = rng.random((CELLS, 9)) < 0.6
    start = np.concatenate([[0], np.cumsum(visits.sum(1))])
    visitors = np.nonzero(visits)[1].astype(np.int32)
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
    visits = rng.random((lists, 6)) < 0.5
    start = np.concatenate([[0], np.cumsum(visits.sum(1))])
    visitors = np.nonzero(visits)[1].astype(np.int32)
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
        # Where codes are alike, any of them, or none of those that are as good as the first left out.
        assert {int(i) for i in number[score > least + 1e-3]} <= kept(best, q)
        assert kept(best, q) <= {int(i) for i in number[score > least - 1e-3]}
        held = ids[q][ids[q] >= 0]
        assert len(held) == best.held[q] == len(set(held.tolist())) <= keep
        images = held // scale.geometry.patches_per_image
        lo, hi = store.training.range_of(None if label is None else store.attributes["labels"][label])
        assert ((images >= lo) & (images < hi)).all()


def test_search_of_no_list_finds_nothing(store):
    scale = store.scale(3)
    codes, ids_at = scale.codes(0)
    best = Best.none(2, 5)
    best_codes(
        codes, Queries.of(codes, np.zeros((2, codes.dims)), 1.0), np.zeros(len(codes.size) + 1, np.int64),
        np.empty(0, np.int32), 5, best, Scratch.of(codes.dims, 5),
        np.zeros(2, np.int64),
    )  # fmt: skip
    ids = np.empty((2, 5), np.int64)
    patch_ids(codes.file, ids_at, best, ids)
    assert (ids == -1).all()
    assert isinstance(store, pi.PatchIndex)


NARROW = """
import numpy as np
from patchindex.kernels import simd_pairs
from patchindex.kernels.nearest import Best, Scratch, best_codes
from patchindex.kernels.codes import Codes, Queries
rng, dims, sizes = np.random.default_rng(0), 21, np.array([90, 0, 40])
values = rng.integers(0, 256, (130, dims), np.uint8)
low, step = rng.normal(0, 1, 32).astype(np.float32), rng.uniform(0.001, 0.01, 32).astype(np.float32)
low[dims:] = step[dims:] = 0
first = np.array([0, 90, 90])
codes = Codes(values.reshape(-1), first * dims, sizes, low, step, dims)
z = rng.normal(0, 1, (5, dims))
best = Best.none(5, 200)
start, visitors = np.array([0, 5, 10, 15]), np.tile(np.arange(5, dtype=np.int32), 3)
scanned = np.zeros(5, np.int64)
best_codes(codes, Queries.of(codes, z, 0.7), start, visitors, 200, best, Scratch.of(dims, 200), scanned)
assert (best.held == 130).all()
y = low[:dims] + (values + 0.5) * step[:dims].astype(np.float64)
worst = 0.0
for q in range(5):
    at = first[best.item[q, :130] >> 32] + (best.item[q, :130] & 0xFFFFFFFF)
    worst = max(worst, np.abs(best.score[q, :130] - (y @ z[q] - 0.7 * (y * y).sum(1))[at]).max())
print(simd_pairs.WIDTH, simd_pairs.INSTRUCTION, worst)
"""


@pytest.mark.parametrize(
    ("keep", "width", "instruction"),
    [("avx2", "8", "llvm.x86.avx2.pmadd.wd"), ("sse2", "4", "llvm.x86.sse2.pmadd.wd"), ("", "4", "None")],
)
def test_scores_are_the_same_on_narrower_processors(tmp_path, keep, width, instruction):
    """A process of its own: numba settles the processor at its import."""
    features = llvmlite.binding.get_host_cpu_features()
    if not features.get("avx2"):
        pytest.skip("no x86 processor with AVX2")
    without = {"avx2": ("avx512",), "sse2": ("avx", "fma", "f16c", "vaes", "vpclmulqdq"), "": ()}[keep]
    narrow = ",".join(
        f"{'+' if there and not name.startswith(without) else '-'}{name}" for name, there in features.items()
    )
    settings = {"NUMBA_CPU_NAME": "haswell" if keep == "avx2" else "x86-64"}
    settings["NUMBA_CPU_FEATURES"] = narrow if keep else "+cx8"
    done = subprocess.run(
        [sys.executable, "-c", NARROW],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)} | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    found = done.stdout.split()
    assert found[:2] == [width, instruction]
    assert float(found[2]) < 2e-3
