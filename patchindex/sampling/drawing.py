"""`sample`: images drawn with a denoiser, and the record of each step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least, is_whole
from patchindex.denoisers import Denoiser
from patchindex.errors import InputError, PatchIndexError
from patchindex.estimators import Estimate
from patchindex.exact import TrajectoryCache
from patchindex.runtime import Progress, as_progress, part_of, plain_state
from patchindex.sampling.conditions import ImageStart, KnownPixels
from patchindex.sampling.draws import KEPT, check_memory, starting_noise, step_noise
from patchindex.sampling.grids import Steps, time_grid
from patchindex.sampling.samplers import SAMPLERS, Callback, Sampler
from patchindex.sampling.trajectory import Trajectory, values_per_step

__all__ = ["SampleResult", "sample"]

Labels = int | Sequence[int | None] | None


@dataclass(frozen=True)
class SampleResult:
    """Drawn images, with the settings and the record of each step.

    Attributes
    ----------
    images : Tensor, shape (n, C, H, W), float32
        In [-1, 1], up to rounding; a posterior mean is an average of training pixels.
    x_T : Tensor, shape (n, C, H, W), float32
        The noise at the start.
    steps : list of dict
        For each evaluation of the posterior mean of each batch: `first` (number of the batch's first image),
        `t`, `k`, `seconds`, `patches_evaluated`, `codes_scanned`, `exact_pixels`, the averages of
        `captured_mass` and `ess` over pixels, and the root mean square of `stderr`. None stands for a value
        that the denoiser does not have.
    settings : dict
        Arguments of `sample` and settings of the denoiser.
    trajectory : Trajectory, optional
        Noisy images and posterior means of each step, of `sample(..., trajectory=True)`.
    """

    images: Tensor
    x_T: Tensor  # noqa: N815  (the field's name for it)
    steps: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any]
    trajectory: Trajectory | None = field(default=None, repr=False)

    @classmethod
    def cat(cls, parts: Sequence[SampleResult], **settings: Any) -> SampleResult:
        """Join results of parts of a set of images; the settings are the first part's, but for some."""
        kept = [part.trajectory for part in parts if part.trajectory is not None]
        return cls(
            torch.cat([part.images for part in parts]),
            torch.cat([part.x_T for part in parts]),
            [step for part in parts for step in part.steps],
            parts[0].settings | settings,
            Trajectory.cat(kept) if kept else None,
        )


def sample(
    denoiser: Denoiser,
    n: int | None = None,
    steps: Steps = 20,
    sampler: str = "ddim",
    seed: int = 0,
    x_T: Tensor | np.ndarray | None = None,
    callback: Callback | None = None,
    *,
    spacing: str = "uniform",
    label: Labels = None,
    start: ImageStart | None = None,
    known: KnownPixels | None = None,
    trajectory: bool = False,
    batch_size: int = 16,
    first: int = 0,
    progress: Progress | None = None,
) -> SampleResult:
    """Draw images with a denoiser.

    Parameters
    ----------
    denoiser : Denoiser
        A score machine, another analytic denoiser, or a network.
    n : int, optional
        Number of images; by default that of `x_T`, or 1.
    steps : int, or sequence of float
        Grid points, at least 2; or the times themselves, descending, in [0, 1).
    sampler : str
        One of `SAMPLERS`: `"ddim"` (deterministic), `"ddpm"` (ancestral), `"euler"` (equal to `"ddim"`), or
        `"heun"`, which evaluates twice per step.
    seed : int
        Seed of the noise and of the estimator. Equal seeds give equal images for any batch size and number
        of threads, up to the rounding of float32 sums (about 1e-4 of the range after 19 steps).
    x_T : Tensor or array, shape (n, C, H, W), optional
        Noise to start from, in place of the seed's.
    callback : callable, optional
        Called after each step of each batch with a dict: `i`, `t`, `t_next`, `x` (the image after the step),
        `score`, `estimate` (both of the first evaluation of the step), `first` (number of the batch's first
        image).
    spacing : str
        Spacing of the times: `"uniform"` (the grid of the paper's code), `"karras"` or `"log-snr"`; see
        `time_grid`.
    label : int, or sequence of n int or None, optional
        In place of the denoiser's own label; a sequence has one label per image.
    start : ImageStart, optional
        Partly noised images to start from.
    known : KnownPixels, optional
        Pixels whose values are known.
    trajectory : bool
        Keep the noisy images and posterior means of all steps.
    batch_size : int
        Images per batch.
    first : int
        Number of the first image; random draws depend on it. For a part of a larger set.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    SampleResult

    Raises
    ------
    InputError
        When a setting is unknown or out of range, `x_T` or a condition does not fit, or the images take more
        memory than the process may use.
    PatchIndexError
        When an image is not finite, or the denoiser's trajectory diverges.

    Examples
    --------
    >>> from patchindex.denoisers import ScoreMachine
    >>> images = np.random.default_rng(0).integers(0, 256, (1, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="IS")  # one training image: it draws that image
    >>> r = sample(m, n=2)
    >>> bool((r.images[0, 0] - torch.from_numpy(images[0] / 127.5 - 1)).abs().max() < 1e-3)
    True
    """
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise InputError(
            f"unknown sampler {sampler!r}", parameter="sampler", remedy=f"use {', '.join(SAMPLERS)}"
        )
    check_least(batch_size=(batch_size, 1), first=(first, 0), seed=(seed, 0))
    times = time_grid(steps, denoiser.noise, spacing)
    noise = starting_noise(denoiser, n, seed, x_T)
    if trajectory:
        per_image = KEPT * math.prod(denoiser.shape) + len(times) * values_per_step(denoiser.shape)
        check_memory(len(noise), per_image)
    x, conditions = noise, {}
    if start is not None:
        times = start.times(times)
        x = start.noised(denoiser, noise, times[0])
        conditions["strength"] = start.strength
    if known is not None:
        known = known.prepared(denoiser, len(noise))
        conditions["known_pixels"] = int(known.mask.sum())
    labels = _labels(label, len(noise))
    progress = as_progress(progress)
    for each in dict.fromkeys(labels):
        denoiser.prepare(each, progress)
    drawing = _Drawing(denoiser, SAMPLERS[sampler], times, seed, callback, trajectory)
    images, records, kept = [], [], []
    for lo, hi in _batches(labels, batch_size):
        part = part_of(progress, "sampling", lo / len(noise), hi / len(noise))
        held = None if known is None else known.rows(lo, hi)
        batch = _Batch(drawing, noise[lo:hi], range(first + lo, first + hi), labels[lo], held, part)
        images.append(batch.draw(x[lo:hi]))
        records += batch.records
        kept.append(batch.steps)
    settings = {
        "n": len(noise),
        "steps": steps if is_whole(steps) else times,
        "sampler": sampler,
        "spacing": spacing,
        "seed": seed,
        "x_T": "given" if x_T is not None else "drawn",
        "label": denoiser.label if label is None else label,
        "batch_size": batch_size,
        **conditions,
        **denoiser.settings,
    }
    whole = Trajectory.cat([Trajectory.of(each) for each in kept]) if trajectory else None
    return SampleResult(torch.cat(images), noise, records, settings, whole)


def _labels(label: Labels, n: int) -> list[int | None]:
    """Return a label per image."""
    if label is None or is_whole(label):
        return [label] * n  # type: ignore[list-item]
    labels = list(label) if isinstance(label, Sequence | np.ndarray) and not isinstance(label, str) else []
    if len(labels) != n or not all(each is None or is_whole(each) for each in labels):
        raise InputError(
            f"must be a label, or one for each of {n} images, got {label!r}",
            parameter="label",
            remedy="give a whole number, or a list of n",
        )
    return [each if each is None else int(each) for each in labels]


def _batches(labels: Sequence[int | None], batch_size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of batches; the images of a batch share their label."""
    end = 0
    for _, group in groupby(labels):
        start, end = end, end + len(list(group))
        for lo in range(start, end, batch_size):
            yield lo, min(lo + batch_size, end)


@dataclass(frozen=True)
class _Drawing:
    """The settings that all batches share."""

    denoiser: Denoiser
    sampler: Sampler
    times: Sequence[float]
    seed: int
    callback: Callback | None
    keep: bool

    @property
    def evaluations(self) -> int:
        """The number of evaluations of the posterior mean, at most."""
        return self.sampler.evaluations * (len(self.times) - 1)


class _Batch:
    """The images of a batch, which share their label."""

    def __init__(
        self,
        drawing: _Drawing,
        noise: Tensor,
        image_ids: Sequence[int],
        label: int | None,
        known: KnownPixels | None,
        progress: Progress,
    ) -> None:
        self._drawing, self._noise, self._image_ids = drawing, noise, image_ids
        self._label, self._known, self._progress = label, known, progress
        self._cache: TrajectoryCache = {}
        self._estimate: Estimate | None = None  # the first one of the step
        self.records: list[dict[str, Any]] = []
        self.steps: list[tuple[float, int | None, Tensor, Estimate]] = []

    def draw(self, x: Tensor) -> Tensor:
        """Return the images, from noisy images at the first time."""
        drawing = self._drawing
        noise = drawing.denoiser.noise
        draw = {"draw": step_noise(drawing.seed, self._image_ids)} if drawing.sampler.random else {}
        with plain_state():
            images = drawing.sampler.function(self._score, x, drawing.times, noise, self._end_step, **draw)
        images = self._held(images, drawing.times[-1])
        if not bool(torch.isfinite(images).all()):
            raise PatchIndexError("an image is not finite", where="sample", remedy="check the sampler")
        drawing.denoiser.check_course(images, drawing.times[-1], len(self.records) + 1)
        return images

    def _held(self, x: Tensor, t: float) -> Tensor:
        """Return x with known pixels at their values, noised to time t."""
        if self._known is None:
            return x
        return self._known.held(x, self._noise, self._drawing.denoiser.noise(t))

    def _score(self, x: Tensor, t: float) -> Tensor:
        """Return the score, and record the evaluation."""
        drawing, done = self._drawing, len(self.records)
        denoiser, total = drawing.denoiser, drawing.evaluations
        x, k, start = self._held(x, t), denoiser.scale_at(t), time.perf_counter()
        denoiser.check_course(x, t, done + 1)
        estimate = denoiser.posterior_mean(
            x,
            t,
            label=self._label,
            seed=drawing.seed,
            image_ids=self._image_ids,
            progress=part_of(self._progress, "sampling", done / total, min((done + 1) / total, 1.0)),
            cache=self._cache,
        )
        self.records.append(
            {
                "first": self._image_ids[0],
                "t": t,
                "k": k,
                "seconds": round(time.perf_counter() - start, 4),
                "patches_evaluated": estimate.patches_evaluated,
                "codes_scanned": estimate.codes_scanned,
                "captured_mass": _rounded(estimate.captured_mass.double().mean(), 6),
                "ess": _rounded(estimate.ess.double().mean(), 3),
                "stderr": _rounded(estimate.stderr.double().square().mean().sqrt(), 6),
                "exact_pixels": estimate.exact_pixels,
            }
        )
        if self._estimate is None:
            self._estimate = estimate
            if drawing.keep:
                self.steps.append((t, k, x, estimate))
        return denoiser.score_of(estimate.mean, x, t)

    def _end_step(self, step: dict[str, Any]) -> None:
        """Pass a step on to the callback."""
        estimate, self._estimate = self._estimate, None
        if self._drawing.callback is not None:
            x = self._held(step["x"], step["t_next"])
            self._drawing.callback({**step, "x": x, "estimate": estimate, "first": self._image_ids[0]})


def _rounded(average: Tensor, digits: int) -> float | None:
    """Return an average over pixels; None instead of NaN, which JSON does not have."""
    value = float(average)
    return None if math.isnan(value) else round(value, digits)
