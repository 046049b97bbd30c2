"""The measurement of an operating curve: near fields of `auto` and searches of `topk` on noisy images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.estimators import AutoPolicy, ScoreContext
from patchindex.estimators.auto import Auto, combine
from patchindex.estimators.base import project
from patchindex.estimators.curve import MOVES, NearPoint, OperatingCurve, TopPoint
from patchindex.estimators.near import Near
from patchindex.estimators.policy import DEFAULT_POLICY
from patchindex.estimators.topk import TopK, rerank
from patchindex.exact import ScoreRequest, expected_seconds, scan
from patchindex.geometry import pad, query_windows
from patchindex.images.by_label import to_unit
from patchindex.index import PatchIndex
from patchindex.index.attributes import MOST_SIZE
from patchindex.kernels.known_patches import KnownPatches
from patchindex.schedules.frames import with_noise
from patchindex.softmax import SoftmaxState

__all__ = ["DEFAULT_SETTINGS", "TuneSettings", "heaviest_logits", "measure_curve", "missed_moves"]

SCORES_BYTES = 64 << 20  # of the logits that are in memory at once


@dataclass(frozen=True)
class TuneSettings:
    """Settings of `tune`: a knob for research and tests."""

    # Images that are drawn: they take most of the time for a small store.
    images: int = 2
    # Probes and candidates of near fields, ascending: a coarse tolerance needs small ones only. The last is
    # for scales whose codes rank patches badly: it is measured where the one before misses too much for the
    # tolerance `fine`.
    near: tuple[tuple[int, int], ...] = ((256, 256), (1024, 1024), (2048, 1024), (2048, 2048), (4096, 4096))
    fine: float = 0.005
    # Searches of `topk`, all pairs of probes and candidates, and the pixels that each is measured on.
    probes: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    candidates: tuple[int, ...] = (64, 256, 1024)
    pixels: int = 16
    # Share of all patches that is sampled, which is enough to estimate the variance.
    share: float = 0.02
    # Training images that exact scores are timed with, or their seconds per pixel if they are known. Near
    # fields that take longer than exact scores are not measured further.
    exact_images: int = 4096
    exact_seconds: float | None = None
    # Quantiles over pixels that are kept of the variance.
    quantiles: int = 32
    policy: AutoPolicy = DEFAULT_POLICY

    def __post_init__(self) -> None:
        sizes = {"near": sum(self.near, ()), "probes": self.probes, "candidates": self.candidates}
        for name, values in sizes.items():
            for value in values:
                check_least(**{name: (value, 1, MOST_SIZE)})


DEFAULT_SETTINGS = TuneSettings()


def measure_curve(
    index: PatchIndex,
    k: int,
    betas: Sequence[float],
    clean: Tensor,
    rng: np.random.Generator,
    settings: TuneSettings,
    progress: Callable[[float, float], None],
) -> OperatingCurve:
    """Measure the operating curve of a scale at some noise levels: clean images (B, C, H, W) with noise."""
    training, geometry = index.training, index.scale(k).geometry
    n = clean[:, 0].numel()
    rows = np.sort(rng.choice(n, min(settings.pixels, n), replace=False))
    requests = []
    for beta in betas:
        noise = torch.from_numpy(rng.standard_normal(clean.shape)).float()
        x = with_noise(clean, noise, beta)
        requests.append(ScoreRequest(training, geometry, x, beta))
    exact = settings.exact_seconds
    if exact is None:
        exact = _exact_seconds(requests[len(requests) // 2], index, settings.exact_images)
    context = ScoreContext(index, torch.device("cpu"))
    levels = [_Level(context, request, settings, exact) for request in requests]
    levels[0].retrieve(requests[0], *settings.near[0])  # opens the lists and loads kernels
    sizes = settings.near
    for done, size in enumerate(sizes):
        if 0 < done == len(sizes) - 1:
            points = [point for level in levels for point in level.points]
            before = [point for point in points if (point.probes, point.candidates) == sizes[done - 1]]
            if all(point.sees(settings.fine, settings.policy) for point in before):
                break
        for level in levels:
            level.measure_near(*size)
        progress((done + 1) / (len(sizes) + 1), 1)
    heaviest = heaviest_logits(requests, rows, index.pixels, max(settings.candidates))
    top: list[TopPoint] = []
    for request, logits in zip(requests, heaviest, strict=True):
        top += _searches(context, request, rows, logits, settings)
    progress(1, 1)
    # The cost of a single pixel follows from the cost of all pixels, as the cost model predicts.
    area = n // len(clean)
    one, every = (
        expected_seconds(geometry, training.channels, len(training), [count]) / count for count in (1, area)
    )
    sampled = float(np.median([seconds for level in levels for seconds in level.scans]))
    return OperatingCurve(
        images=len(training),
        exact=exact,
        scan=sampled,
        single=sampled * one / every,
        least=min(level.least for level in levels),
        near=tuple(point for level in levels for point in level.points),
        top=tuple(top),
    )


def _exact_seconds(request: ScoreRequest, index: PatchIndex, images: int) -> float:
    """Return the seconds per pixel of exact scores, of all training images."""
    training = index.training.select(slice(images))
    one = replace(request.select(slice(1)), training=training)
    scan(one)  # loads kernels
    start = time.perf_counter()
    scan(one)
    return (time.perf_counter() - start) / len(training) * len(request.training) / one.x[0, 0].numel()


class _Level:
    """Near fields of the noisy images of one noise level."""

    def __init__(
        self, context: ScoreContext, request: ScoreRequest, settings: TuneSettings, exact: float
    ) -> None:
        self._auto = Auto(context, policy=settings.policy)
        self._request, self._settings, self._exact = request, settings, exact
        self._deeper: list[KnownPatches] = []
        self._deeper_pixels = 0
        self.points: list[NearPoint] = []  # until one takes longer than exact scores
        self.scans: list[float] = []  # seconds per pixel of a sample that has all patches
        self.least = 1.0  # share of all patches that `auto` samples at least

    def measure_near(self, probes: int, candidates: int) -> None:
        """Measure a near field, unless a smaller one takes longer than exact scores."""
        if self.points and self.points[-1].seconds > self._exact:
            return
        request, settings = replace(self._request, cache={}), self._settings
        nears, seconds = self.retrieve(request, probes, candidates)
        for i, near in enumerate(nears):
            self._auto.remember(request, i, near)
        again = self.retrieve(request, probes, candidates)[-1]
        if not self._deeper and seconds < self._exact:
            self._retrieve_deeper()
        variances, moves = [], []
        for i, near in enumerate(nears):
            state, share = self._sample(i, near)
            variances.append(state.mean_variance().mean(-1) * share / max(1 - share, 1e-9))
            if self._deeper:
                images = self._auto.index.pixels.numpy()
                moves.append(missed_moves(images, near.members, self._deeper[i], state))
        levels = (np.arange(settings.quantiles) + 0.5) / settings.quantiles
        missed = None
        if self._deeper:
            squares = np.concatenate(moves) ** 2
            missed = tuple(float(squares[squares > move**2].sum() / self._deeper_pixels) for move in MOVES)
        variance = tuple(np.quantile(torch.cat(variances).numpy(), levels).tolist())
        self.points.append(NearPoint(request.beta, probes, candidates, seconds, again, variance, missed))

    def retrieve(self, request: ScoreRequest, *size: int) -> tuple[list[Near], float]:
        """Return the near field of each image, and the seconds per pixel that they took."""
        start = time.perf_counter()
        field = self._auto.retrieve(request, *size)
        nears = [field.image(i) for i in range(len(request.x))]
        return nears, (time.perf_counter() - start) / request.x[:, 0].numel()

    def _retrieve_deeper(self) -> None:
        """Retrieve a larger near field of as many pixels as memory allows: it has what all others miss."""
        policy = self._settings.policy
        field = self._auto.retrieve(self._request, policy.probes, policy.candidates)
        for i in range(len(self._request.x)):
            near = field.image(i)
            order = np.random.default_rng(i).permutation(self._request.x[0, 0].numel())
            pixels = np.sort(order[: field.most_deeper])
            found = field.deeper(i, near, pixels)
            self._deeper.append(_heavy(found.members, found.state))
            self._deeper_pixels += len(pixels)

    def _sample(self, i: int, near: Near) -> tuple[SoftmaxState, float]:
        """Return the softmax of image i with a sample, (H, W), and the sampled share of all patches."""
        sample = self._auto.sample(self._request.select(slice(i, i + 1)), near)
        first = self._settings.policy.first_strata
        self.least = min(1.0, first / sample.strata)
        start = time.perf_counter()
        sample.grow(max(first, int(self._settings.share * sample.strata)))
        share = sample.scanned / sample.strata
        self.scans.append((time.perf_counter() - start) / share / self._request.x[0, 0].numel())
        return combine(near, sample), share


def _heavy(members: KnownPatches, state: SoftmaxState) -> KnownPatches:
    """Return the members that can move the mean of their pixel, within 2, by the least of `MOVES`."""
    least = state.log_weight().reshape(-1).numpy() + math.log(MOVES[-1] / 2)
    heavy = members.logit > least[members.pixel]
    return KnownPatches(*(array[heavy] for array in members))


def missed_moves(
    images: np.ndarray, known: KnownPatches, deeper: KnownPatches, state: SoftmaxState
) -> np.ndarray:
    """Return how far each patch that only a larger near field has moves the mean of its pixel.

    Root mean squares over channels, (n,); `state` is the softmax (H, W) with the known members.
    """
    area = images.shape[1] * images.shape[2]
    weight, mean = state.log_weight().numpy().reshape(-1), state.mean().numpy().reshape(area, -1)

    def keys(members: KnownPatches) -> np.ndarray:
        return (members.image.astype(np.int64) * area + members.place) * area + members.pixel

    found = _heavy(deeper, state)
    new = ~np.isin(keys(found), keys(_heavy(known, state)))
    pixel, image, place, logit = (array[new] for array in found)
    shares = np.exp(logit - weight[pixel])
    shares /= 1 + np.bincount(pixel, shares, area)[pixel]
    values = images.reshape(len(images), area, -1)[image, place] / 127.5 - 1
    return shares * np.sqrt(np.square(values - mean[pixel]).mean(-1))


def heaviest_logits(
    requests: Sequence[ScoreRequest], rows: np.ndarray, images: Tensor, most: int
) -> list[Tensor]:
    """Return the largest logits, (n, most), of the pixels `rows` of the batch, for each request.

    Brute force; descending, minus infinity where a pixel is compared with fewer patches.
    """
    geometry = requests[0].geometry
    windows = [query_windows(r.x, geometry)[rows].permute(0, 3, 1, 2) for r in requests]
    filters = torch.cat(windows)
    ones = torch.ones(1, *filters.shape[1:], dtype=torch.float32)
    train_classes = torch.from_numpy(geometry.train_classes.reshape(-1))
    classes = geometry.query_classes.reshape(-1)[rows % requests[0].x[0, 0].numel()]
    same = [train_classes == int(c) for c in classes]
    nothing = torch.full((most,), -torch.inf, dtype=torch.float32)
    best = [[nothing] * len(rows) for _ in requests]
    step = max(1, SCORES_BYTES // (4 * len(filters) * geometry.patches_per_image))
    for first in range(0, len(images), step):
        block = to_unit(images[first : first + step]).permute(0, 3, 1, 2)
        padded = pad(block, geometry, geometry.y.train_padding)
        norms = torch.nn.functional.conv2d(padded.square(), ones).flatten(1)
        products = torch.nn.functional.conv2d(padded, filters).flatten(2)
        for level, request in enumerate(requests):
            a = request.a
            for p, found in enumerate(best[level]):
                # The norm of the window, which every logit has in common, is subtracted at the end.
                scores = 2 * a * products[:, level * len(rows) + p] - a**2 * norms
                scores = scores[:, same[p]].flatten() / (2 * request.beta)
                both = torch.cat([found, scores[scores > found[-1]]])
                best[level][p] = both.topk(most).values
    return [
        torch.stack(found) - window.flatten(1).square().sum(1, keepdim=True) / (2 * request.beta)
        for found, window, request in zip(best, windows, requests, strict=True)
    ]


def _searches(
    context: ScoreContext, request: ScoreRequest, rows: np.ndarray, heaviest: Tensor, settings: TuneSettings
) -> Iterator[TopPoint]:
    """Yield the searches of `topk` at one noise level."""
    assert context.index is not None
    z = project(context.index.scale(request.geometry.k), request)[rows]
    for candidates in settings.candidates:
        whole = heaviest[:, :candidates].double().logsumexp(1)
        for probes in settings.probes:
            topk = TopK(context, candidates, probes)
            start = time.perf_counter()
            state = rerank(context, request, rows, topk.search(request, z, rows)[0])
            seconds = (time.perf_counter() - start) / len(rows)
            mass = (state.log_weight() - whole).exp().clamp(0, 1).mean()
            yield TopPoint(request.beta, probes, candidates, seconds, float(mass))
