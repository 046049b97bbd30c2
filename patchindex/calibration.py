"""Measure what the estimators' options are good for in a store, and write it there.

Noisy images are made from training images, each left out of its own answer, at the lowest, the middle and the
highest noise at which a locality scale is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor

from patchindex.backends import threads
from patchindex.errors import InputError
from patchindex.estimators import Data, Query
from patchindex.estimators.auto import FIRST_CELLS, together
from patchindex.estimators.curve import ATTRIBUTE, NearPoint, OperatingCurve, TopPoint
from patchindex.estimators.near import NearField
from patchindex.estimators.topk import rerank
from patchindex.exact import expected_seconds, load_kernel
from patchindex.exact.sampled import SampledScan
from patchindex.index import PatchIndex, ScaleIndex, open_index
from patchindex.index.store import scale_group
from patchindex.machine import WORKING_MEMORY
from patchindex.patches import Geometry
from patchindex.schedules import noise_levels
from patchindex.softmax import SoftmaxState
from patchindex.training import to_unit
from patchindex.windows import pad, query_windows

__all__ = ["calibrate"]

IMAGES = 2  # noisy ones a noise level
NEAR = ((128, 256), (256, 512), (512, 512), (1024, 1024), (2048, 2048))  # probes and candidates of `auto`
PROBES, CANDIDATES = (8, 16, 32, 64, 128, 256), (64, 256, 1024)  # of `topk`
PIXELS = 48  # a noise level, for `topk`
SHARE = 0.02  # of all patches that a sample is at first
QUANTILES = 32
SCORES_BYTES = 64 << 20  # of the logits that are looked at at once

_threads = threads  # a parameter has this name

Progress = Callable[[str, float, float], None]


def calibrate(
    store: str | Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PatchIndex:
    """Measure the operating curve of each scale of a store, by which estimators choose their options.

    For `auto`: what a near field of so many probes and candidates costs, and what sample of all other patches
    it leaves to a tolerance. For `topk`: which share it finds of what as many of the heaviest patches weigh.
    Written to the scales' attributes; those that have it are left alone. On the CPU.

    Parameters
    ----------
    store : str or Path
        What `build_index` made.
    seed : int
        Which training images are taken, and their noise.
    threads : int, optional
        CPU threads; by default those of torch.
    overwrite : bool
        Measure anew.
    progress : callable, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    PatchIndex
        The store, opened.

    Raises
    ------
    InputError
        When it is no store, or holds a single image: none is left to compare with.

    Examples
    --------
    >>> import tempfile, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (30, 12, 12), np.uint8)
    >>> path = tempfile.mkdtemp() + "/s.zarr"
    >>> _ = pi.build_index(images, path, scales=[3])
    >>> sorted(calibrate(path).scale(3).attributes["operating_curve"])
    ['images', 'least', 'near', 'scan', 'single', 'top']
    """
    index = open_index(store)
    if len(index.training) < 2:
        raise InputError("holds a single image", where=store, remedy="build it from more")
    todo = [k for k in index.scales if overwrite or ATTRIBUTE not in index.scale(k).attributes]
    if todo:
        load_kernel()
    with _threads(threads):
        for k in todo:
            betas = noise_levels(k, index.locality)
            betas = sorted({betas[0], betas[len(betas) // 2], betas[-1]})
            stage = f"k = {k}: operating curve"
            curve = _Levels(index, k, betas, seed).measure(partial(_tell, progress, stage))
            group = zarr.open_group(index.path / scale_group(k), mode="r+")
            group.attrs[ATTRIBUTE] = curve.as_dict()
    return open_index(store)


def _tell(progress: Progress | None, stage: str, done: float) -> None:
    if progress is not None:
        progress(stage, done, 1)


class _Levels:
    """Noisy images of some noise levels, for one scale."""

    def __init__(self, index: PatchIndex, k: int, betas: Sequence[float], seed: int) -> None:
        self._index, self._k, self._seed = index, k, seed
        self._scale: ScaleIndex = index.scale(k)
        self._geometry: Geometry = self._scale.geometry
        self._data = Data(
            index.training, index.machine, index.train_windows, index, torch.device("cpu"), WORKING_MEMORY
        )
        rng = np.random.default_rng([seed, k])
        n = len(index.training)
        self._own = np.sort(rng.choice(n, min(IMAGES, n), replace=False))
        self._images = n - 1
        clean = torch.cat([to_unit(torch.from_numpy(index.training.read(i, i + 1))) for i in self._own])
        clean = clean.permute(0, 3, 1, 2)
        self._pixels = rng.choice(clean[:, 0].numel(), min(PIXELS, clean[:, 0].numel()), replace=False)
        self._queries = []
        for beta in betas:
            a, noise = (
                (1 - beta) ** 0.5,
                torch.from_numpy(rng.standard_normal(clean.shape).astype(np.float32)),
            )
            self._queries.append(
                Query(a * clean + beta**0.5 * noise, a, beta, k, seed=seed, samples=range(len(clean)))
            )

    def measure(self, progress: Callable[[float], object]) -> OperatingCurve:
        """Return the curve."""
        near: list[NearPoint] = []
        top: list[TopPoint] = []
        scans, least = [], 1.0
        self._near(self._queries[0], *NEAR[0])  # opens the lists, loads kernels
        for i, query in enumerate(self._queries):
            for options in NEAR:
                point, scan, least = self._near(query, *options)
                near.append(point)
                scans.append(scan)
            progress((i + 0.5) / (len(self._queries) + 1))
        heaviest = self._heaviest()
        for query, log_weights in zip(self._queries, heaviest, strict=True):
            top += self._top(query, log_weights)
        progress(1)
        # What a pixel costs alone follows from what all cost together.
        area = self._geometry.size[0] * self._geometry.size[1]
        channels = self._index.training.channels
        one, every = (expected_seconds(self._geometry, channels, self._images, [n]) for n in (1, area))
        scan = float(np.median(scans))
        return OperatingCurve(self._images, scan, scan * one * area / every, least, tuple(near), tuple(top))

    def _near(self, query: Query, probes: int, candidates: int) -> tuple[NearPoint, float, float]:
        """Return a point, the seconds a pixel of a whole scan, and the share that is sampled in any case."""
        start = time.perf_counter()
        field = NearField(self._data, query, probes, candidates, self._own.tolist())
        nears = [field.image(i) for i in range(len(query.x))]
        seconds = (time.perf_counter() - start) / query.x[:, 0].numel()
        variances, scans = [], []
        for i, near in enumerate(nears):
            sample = SampledScan(
                self._index.pixels.numpy(), 0, self._images + 1, self._geometry, query.x[i], query.a,
                query.beta, [self._seed, i], near.members, near.state.max_logit.numpy(),
                without=int(self._own[i]),
            )  # fmt: skip
            least = min(1.0, FIRST_CELLS / sample.cells)
            start = time.perf_counter()
            sample.grow(max(FIRST_CELLS, int(SHARE * sample.cells)))
            share = sample.scanned / sample.cells
            scans.append((time.perf_counter() - start) / share / query.x[i, 0].numel())
            variance = together(near, sample).stderr().square().mean(-1)
            variances.append(variance * share / max(1 - share, 1e-9))
        quantiles = np.quantile(torch.cat(variances).numpy(), (np.arange(QUANTILES) + 0.5) / QUANTILES)
        point = NearPoint(query.beta, probes, candidates, seconds, tuple(quantiles.tolist()))
        return point, float(np.mean(scans)), least

    def _heaviest(self) -> list[Tensor]:
        """Return for each noise level the largest logits of the pixels, (pixels, most), descending."""
        geometry, index = self._geometry, self._index
        classes = torch.from_numpy(np.tile(geometry.query_classes.reshape(-1), len(self._own))[self._pixels])
        own = torch.from_numpy(self._own)[torch.from_numpy(self._pixels) // geometry.query_classes.size]
        windows = [query_windows(q.x, geometry)[self._pixels].permute(0, 3, 1, 2) for q in self._queries]
        filters = torch.cat(windows)
        best = [torch.empty(len(self._pixels), 0)] * len(windows)
        ones = torch.ones(1, *filters.shape[1:])
        train_classes = torch.from_numpy(geometry.train_classes.reshape(-1))
        same = train_classes == classes[:, None]
        step = max(1, SCORES_BYTES // (4 * len(filters) * geometry.patches_per_image))
        for first in range(0, self._images + 1, step):
            images = to_unit(index.pixels[first : first + step]).permute(0, 3, 1, 2)
            padded = pad(images, geometry, geometry.y.train_padding)
            norms = torch.nn.functional.conv2d(padded.square(), ones).flatten(1)
            products = torch.nn.functional.conv2d(padded, filters).flatten(2)
            number = torch.arange(first, first + len(images))
            for level, query in enumerate(self._queries):
                some = slice(level * len(self._pixels), (level + 1) * len(self._pixels))
                logits = products[:, some].transpose(0, 1).mul(2 * query.a)
                logits = (logits - query.a**2 * norms) / (2 * query.beta)
                logits.masked_fill_(~same[:, None], -torch.inf)
                logits.masked_fill_((number == own[:, None])[:, :, None], -torch.inf)
                both = torch.cat([best[level], logits.flatten(1)], 1)
                best[level] = both.topk(min(max(CANDIDATES), both.shape[1])).values
        # What a window's own norm takes off the logits of all patches.
        return [
            logits - window.flatten(1).square().sum(1, keepdim=True) / (2 * query.beta)
            for logits, window, query in zip(best, windows, self._queries, strict=True)
        ]

    def _top(self, query: Query, heaviest: Tensor) -> Iterator[TopPoint]:
        """Yield the points of a noise level."""
        scale, geometry = self._scale, self._geometry
        area = geometry.query_classes.size
        classes = np.tile(geometry.query_classes.reshape(-1), len(self._own))[self._pixels]
        own = self._own[self._pixels // area][:, None]
        windows = query_windows(query.x, geometry)[self._pixels]
        vectors = (scale.pca.project_queries(query.x, geometry, query.a)[self._pixels] / query.a).numpy()
        for candidates in CANDIDATES:
            whole = heaviest[:, :candidates].double().logsumexp(1)
            for probes in PROBES:
                keys = scale.lists.nearest(vectors, classes, min(probes, len(scale.lists.centroids)))
                start = time.perf_counter()
                scale.lists.nearest(vectors, classes, min(probes, len(scale.lists.centroids)))
                _, ids = scale.search(vectors, keys, candidates, None)
                self._rerank(query, windows, ids)
                seconds = (time.perf_counter() - start) / len(ids)
                # The image itself is found too, and does not count.
                _, ids = scale.search(vectors, keys, candidates + geometry.patches_per_image, None)
                ids = _first(ids, (ids >= 0) & (ids // geometry.patches_per_image != own), candidates)
                found = self._rerank(query, windows, ids).log_weight()
                mass = float((found - whole).exp().clamp(0, 1).mean())
                yield TopPoint(query.beta, probes, candidates, seconds, mass)

    def _rerank(self, query: Query, windows: Tensor, ids: np.ndarray) -> SoftmaxState:
        patches = torch.from_numpy(ids)
        pixels, memory = self._index.pixels, self._data.memory
        return rerank(pixels, self._geometry, windows, patches, query.a, query.beta, memory)


def _first(ids: np.ndarray, wanted: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` wanted ids of each row, -1 where there are no more."""
    order = np.argsort(~wanted, axis=1, kind="stable")[:, :count]
    found = np.take_along_axis(ids, order, 1)
    found[~np.take_along_axis(wanted, order, 1)] = -1
    return found
