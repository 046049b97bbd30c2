"""Measure what the estimators' options are good for in a store, and write it there.

The noisy images come from a few that the machine itself draws, with fresh noise: what estimators see in
sampling. Noisy training images are another thing even if each is left out of its own answer: `auto` needs a
smaller sample for them (docs/decisions/0006-operating-curve.md).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchindex.build.workdir import locked, real_path
from patchindex.denoisers.score_machine import ScoreMachine
from patchindex.errors import InputError, StoreError
from patchindex.estimators import ScoreContext
from patchindex.estimators.auto import DEEP_BYTES, FIRST_CELLS, combine
from patchindex.estimators.curve import DEEPER, MOVES, NearPoint, OperatingCurve, TopPoint
from patchindex.estimators.near import Near, NearField
from patchindex.estimators.topk import rerank
from patchindex.exact import ScoreRequest, expected_seconds, scan
from patchindex.exact.request import WORKING_MEMORY
from patchindex.exact.sampled import SampledScan
from patchindex.geometry import pad, query_windows
from patchindex.images.by_label import TrainingImages, to_unit
from patchindex.index import PatchIndex, open_index
from patchindex.index.patch_index import scale_group
from patchindex.kernels.known_patches import KnownPatches
from patchindex.runtime import Progress, no_progress, part_of, threads
from patchindex.sampling.samplers import sample
from patchindex.schedules import LocalitySchedule, noise_levels
from patchindex.softmax import SoftmaxState
from patchindex.store.checksums import CURVE

__all__ = ["tune"]

IMAGES = 2  # that are drawn
# Probes and candidates of `auto`. Fewer candidates are faster for a single noisy image; in a trajectory,
# where they are found once, more are. The last is for scales whose codes tell patches badly apart: it is
# tried where the one before misses too much for a tolerance of `FINE`.
NEAR = ((1024, 1024), (2048, 1024), (2048, 2048), (4096, 4096))
FINE = 0.005
PROBES, CANDIDATES = (8, 16, 32, 64, 128, 256, 512), (64, 256, 1024)  # of `topk`
PIXELS = 16  # a noise level, for `topk`
SHARE = 0.02  # of all patches that a sample is
EXACT = 4096  # images that exact scores are timed with
QUANTILES = 32
SCORES_BYTES = 64 << 20  # of the logits that are looked at at once

_threads = threads  # a parameter has this name


def tune(
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
    At the lowest, the middle and the highest noise at which a scale is used; on the CPU. Written beside the
    scales; those that have it are left alone.

    Parameters
    ----------
    store : str or Path
        What `build_index` made.
    seed : int
        Of the images that are drawn, and their noise.
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
    SourceNotFoundError, InputError, StoreError
        As `open_index` does; and when something is to be measured, and the store cannot be written to.

    Examples
    --------
    >>> import tempfile, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (30, 12, 12), np.uint8)
    >>> path = tempfile.mkdtemp() + "/s.zarr"
    >>> _ = pi.build_index(images, path, scales=[3])
    >>> sorted(tune(path).scale(3).attributes["operating_curve"])
    ['exact', 'images', 'least', 'near', 'scan', 'single', 'top', 'version']
    """
    progress = progress or no_progress
    index = open_index(store)
    todo = _unmeasured(index, overwrite)
    if not todo:
        return index
    if not os.access(index.path / scale_group(todo[0]), os.W_OK):
        raise InputError(
            "cannot be written to", where=index.path, remedy="tune it where it can, or go without"
        )
    with _threads(threads), locked(real_path(index.path)):
        index = open_index(store)
        todo = _unmeasured(index, overwrite)
        clean = _draw(index, seed, progress)
        for k in todo:
            betas = noise_levels(k, index.locality)
            betas = sorted({betas[0], betas[len(betas) // 2], betas[-1]})
            levels = _Levels(index, k, betas, clean, np.random.default_rng([seed, k]))
            curve = levels.measure(partial(progress, f"k = {k}: operating curve"))
            index.scale(k).save_curve(curve.as_dict())
    return open_index(store)


def _unmeasured(index: PatchIndex, overwrite: bool) -> list[int]:
    """Return the scales that are to be measured."""
    if not overwrite:
        return [k for k in index.scales if OperatingCurve.of(index.scale(k)) is None]
    for k in index.scales:
        curve = index.path / scale_group(k) / CURVE
        try:
            index.scale(k)
        except StoreError as error:
            if error.where != curve:
                raise
            curve.unlink()  # a damaged one
    return list(index.scales)


def _draw(index: PatchIndex, seed: int, progress: Progress) -> Tensor:
    """Return images from the store, by its own schedule or one that takes all scales in turn."""
    schedule = index.locality or LocalitySchedule.of([index.scales[0], *index.scales])
    machine = ScoreMachine(index, locality=schedule, estimator="auto", probes=1024, candidates=1024)
    return sample(
        machine, IMAGES, seed=seed, progress=part_of(progress, "images to tune by", 0.0, 1.0)
    ).images


class _Deeper(NamedTuple):
    """The members of a larger near field of some pixels of an image, raster numbers."""

    pixels: np.ndarray
    members: KnownPatches


def _heavy(members: KnownPatches, state: SoftmaxState) -> KnownPatches:
    """Return those that may move the mean of their pixel, within 2 of theirs, by the least of `MOVES`."""
    least = state.log_weight().reshape(-1).numpy() + math.log(MOVES[-1] / 2)
    heavy = members.logit > least[members.pixel]
    return KnownPatches(*(array[heavy] for array in members))


class _Levels:
    """Noisy images of some noise levels, for one scale."""

    def __init__(
        self, index: PatchIndex, k: int, betas: Sequence[float], clean: Tensor, rng: np.random.Generator
    ) -> None:
        self._index, self._scale = index, index.scale(k)
        self._geometry, self._images = self._scale.geometry, len(index.training)
        self._data = ScoreContext(index, torch.device("cpu"))
        self._area = clean[0, 0].numel()
        n = clean[:, 0].numel()
        self._pixels = np.sort(rng.choice(n, min(PIXELS, n), replace=False))
        self._classes = np.tile(self._geometry.query_classes.reshape(-1), len(clean))[self._pixels]
        self._queries = []
        for beta in betas:
            a, noise = (1 - beta) ** 0.5, torch.from_numpy(rng.standard_normal(clean.shape)).float()
            x = a * clean + beta**0.5 * noise
            self._queries.append(ScoreRequest(index.training, self._geometry, x, beta))

    def measure(self, progress: Callable[[float, float], None]) -> OperatingCurve:
        """Return the curve."""
        near: list[NearPoint] = []
        top: list[TopPoint] = []
        scans = []
        exact, least = self._exact(), 1.0
        self._retrieve(self._queries[0], *NEAR[0])  # opens the lists, loads kernels
        deeper: list[list[_Deeper]] = [[] for _ in self._queries]
        levels = list(zip(self._queries, deeper, strict=True))
        for done, options in enumerate(NEAR):
            before = [point for point in near if (point.probes, point.candidates) == NEAR[-2]]
            if options == NEAR[-1] and all(point.sees(FINE) for point in before):
                break
            for query, mine in levels:
                point, sampled, least = self._near(query, *options, exact, mine)
                near.append(point)
                scans.append(sampled)
            # Larger near fields cost more: not where exact scores take less.
            dear = {point.beta for point in near if point.seconds > exact}
            levels = [level for level in levels if level[0].beta not in dear]
            progress((done + 1) / (len(NEAR) + 1), 1)
        for query, heaviest in zip(self._queries, self._heaviest(), strict=True):
            top += self._top(query, heaviest)
        progress(1, 1)
        # What a pixel costs alone follows from what all cost together.
        channels = self._index.training.channels
        one, every = (
            expected_seconds(self._geometry, channels, self._images, [n]) / n for n in (1, self._area)
        )
        sampled = float(np.median(scans))
        single = sampled * one / every
        return OperatingCurve(self._images, exact, sampled, single, least, tuple(near), tuple(top))

    def _exact(self) -> float:
        """Return the seconds a pixel of exact scores, of all images."""
        some = min(EXACT, self._images)
        training = TrainingImages(self._index.pixels[:some].numpy())
        query = self._queries[len(self._queries) // 2]
        seconds = []
        for _ in range(2):  # the first loads kernels
            start = time.perf_counter()
            scan(replace(query.select(slice(1)), training=training))
            seconds.append((time.perf_counter() - start) / some * self._images / self._area)
        return seconds[-1]

    def _near(
        self, query: ScoreRequest, probes: int, candidates: int, exact: float, deeper: list[_Deeper]
    ) -> tuple[NearPoint, float, float]:
        """Return a point, the seconds a pixel of a whole scan, and the share that is sampled in any case.

        The first of a query leaves a deeper near field of each image, which tells what all miss.
        """
        field, nears, seconds = self._retrieve(query, probes, candidates)
        again = self._retrieve(query, probes, candidates, [near.heaviest for near in nears])[-1]
        if not deeper and seconds < exact:
            deeper += [self._deeper(field, i, near) for i, near in enumerate(nears)]
        variances, scans, least, moves = [], [], 1.0, []
        for i, near in enumerate(nears):
            one, top = query.select(slice(i, i + 1)), near.state.max_logit.numpy()
            sample = SampledScan(one, self._index.pixels.numpy(), near.members, top)
            least = min(1.0, FIRST_CELLS / sample.strata)
            start = time.perf_counter()
            sample.grow(max(FIRST_CELLS, int(SHARE * sample.strata)))
            share = sample.scanned / sample.strata
            scans.append((time.perf_counter() - start) / share / self._area)
            state = combine(near, sample)
            variance = state.mean_variance().mean(-1)
            variances.append(variance * share / max(1 - share, 1e-9))
            if deeper:
                moves.append(self._moves(near.members, deeper[i], state))
        quantiles = np.quantile(torch.cat(variances).numpy(), (np.arange(QUANTILES) + 0.5) / QUANTILES)
        missed = None
        if deeper:
            squares = np.concatenate(moves) ** 2
            pixels = sum(len(each.pixels) for each in deeper)
            missed = tuple(float(squares[squares > move**2].sum() / pixels) for move in MOVES)
        point = NearPoint(query.beta, probes, candidates, seconds, again, tuple(quantiles.tolist()), missed)
        return point, float(np.mean(scans)), least

    def _deeper(self, field: NearField, i: int, near: Near) -> _Deeper:
        """Return a larger near field of as many pixels of image i as memory allows."""
        most = max(1, WORKING_MEMORY // (DEEPER * field.candidates * DEEP_BYTES))
        pixels = np.sort(np.random.default_rng(i).permutation(self._area)[:most])
        found = field.deeper(i, near, pixels, DEEPER)
        return _Deeper(pixels, _heavy(found.members, found.state))

    def _moves(self, known: KnownPatches, deeper: _Deeper, state: SoftmaxState) -> np.ndarray:
        """Return how far the mean of its pixel each patch moves that is in a deeper near field only.

        Root mean squares over channels, of those that may move it by the least of `MOVES`.
        """
        weight, mean = state.log_weight().numpy().reshape(-1), state.mean().numpy().reshape(self._area, -1)

        def keys(members: KnownPatches) -> np.ndarray:
            return (members.image.astype(np.int64) * self._area + members.place) * self._area + members.pixel

        found = _heavy(deeper.members, state)
        known = _heavy(known, state)
        new = ~np.isin(keys(found), keys(known))
        pixel, image, place, logit = (array[new] for array in found)
        shares = np.exp(logit - weight[pixel])
        shares /= 1 + np.bincount(pixel, shares, self._area)[pixel]
        values = self._index.pixels.numpy().reshape(self._images, self._area, -1)[image, place] / 127.5 - 1
        return shares * np.sqrt(np.square(values - mean[pixel]).mean(-1))

    def _retrieve(
        self, query: ScoreRequest, probes: int, candidates: int, recalled: Sequence[np.ndarray] = ()
    ) -> tuple[NearField, list[Near], float]:
        """Return near fields, those of each image, and the seconds a pixel that they took."""
        start = time.perf_counter()
        field = NearField(self._data, query, probes, candidates, recalled)
        nears = [field.image(i) for i in range(len(query.x))]
        return field, nears, (time.perf_counter() - start) / query.x[:, 0].numel()

    def _heaviest(self) -> list[Tensor]:
        """Return for each noise level the largest logits of the pixels, (pixels, most), descending.

        Minus infinity where a pixel is compared with fewer patches.
        """
        geometry, pixels = self._geometry, self._index.pixels
        windows = [query_windows(q.x, geometry)[self._pixels].permute(0, 3, 1, 2) for q in self._queries]
        filters = torch.cat(windows)
        ones = torch.ones(1, *filters.shape[1:], dtype=torch.float32)
        train_classes = torch.from_numpy(geometry.train_classes.reshape(-1))
        same = [train_classes == int(c) for c in self._classes]
        nothing = torch.full((max(CANDIDATES),), -torch.inf, dtype=torch.float32)
        best = [[nothing] * len(self._pixels) for _ in windows]
        step = max(1, SCORES_BYTES // (4 * len(filters) * geometry.patches_per_image))
        for first in range(0, self._images, step):
            images = to_unit(pixels[first : first + step]).permute(0, 3, 1, 2)
            padded = pad(images, geometry, geometry.y.train_padding)
            norms = torch.nn.functional.conv2d(padded.square(), ones).flatten(1)
            products = torch.nn.functional.conv2d(padded, filters).flatten(2)
            for level, query in enumerate(self._queries):
                for p, found in enumerate(best[level]):
                    # All but what the window's own norm takes off every logit.
                    scores = 2 * query.a * products[:, level * len(self._pixels) + p] - query.a**2 * norms
                    scores = scores[:, same[p]].flatten() / (2 * query.beta)
                    both = torch.cat([found, scores[scores > found[-1]]])
                    best[level][p] = both.topk(len(found)).values
        return [
            torch.stack(found) - window.flatten(1).square().sum(1, keepdim=True) / (2 * query.beta)
            for found, window, query in zip(best, windows, self._queries, strict=True)
        ]

    def _top(self, query: ScoreRequest, heaviest: Tensor) -> Iterator[TopPoint]:
        """Yield the points of a noise level."""
        scale, geometry = self._scale, self._geometry
        vectors = (scale.pca.project_queries(query.x, geometry, query.a)[self._pixels] / query.a).numpy()
        for candidates in CANDIDATES:
            whole = heaviest[:, :candidates].double().logsumexp(1)
            for probes in PROBES:
                start = time.perf_counter()
                keys = scale.lists.nearest(vectors, self._classes, min(probes, len(scale.lists.centroids)))
                _, ids = scale.search(vectors, keys, candidates, None)
                state = rerank(self._data, scale, query, self._pixels, ids)
                seconds = (time.perf_counter() - start) / len(ids)
                mass = (state.log_weight() - whole).exp().clamp(0, 1).mean()
                yield TopPoint(query.beta, probes, candidates, seconds, float(mass))
