"""Distances of patches in the stored images, against plain float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from patchindex.index.rerank import _distance, window_tables
from patchindex.patches import Geometry
from patchindex.simd import LANES
from patchindex.windows import gather_patches


@njit
def distances(images, windows, size, queries, mask, ids, out):
    raw = np.zeros(len(mask), np.float32)
    for q in range(len(ids)):
        for i in range(ids.shape[1]):
            out[q, i] = _distance(images, windows, ids[q, i], queries[q], mask, size, raw)


CASES = [("ELS", "valid"), ("ELS", "wrapped"), ("bbELS", "valid")]


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("machine", "train_windows"), CASES)
def test_distances(real_images, machine, train_windows, channels, k):
    images = real_images(7, (10, 12), channels=channels)[0]
    geometry = Geometry.of(machine, k, (10, 12), train_windows)
    total = len(images) * geometry.patches_per_image
    rng = np.random.default_rng(0)
    ids = rng.integers(0, total, (5, 40))
    ids[:, :2] = [0, total - 1]  # the first, and the very last of the file
    used = k * channels
    line = -(-used // LANES) * LANES
    mask = (np.arange(line) < used).astype(np.float32)
    windows = rng.uniform(-300, 500, (5, k, used))
    queries = np.full((5, k, line), 1e3, np.float32)  # what stands where there is no value does not matter
    queries[:, :, :used] = windows
    found = np.zeros(ids.shape, np.float32)
    distances(
        images.reshape(-1),
        window_tables(geometry),
        images.shape[1:],
        queries.reshape(5, -1),
        mask,
        ids,
        found,
    )
    patches = gather_patches(torch.from_numpy(images), geometry, torch.from_numpy(ids))
    in_bytes = (patches.double().numpy() + 1) * 127.5
    difference = in_bytes.reshape(5, 40, -1) - windows.reshape(5, 1, -1)
    expected = np.square(difference).sum(2)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-3)  # float32 sums of up to 243 terms
