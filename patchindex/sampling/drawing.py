"""`sample`: images drawn with a denoiser, batch by batch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least, is_name_in, is_whole
from patchindex.denoisers import Denoiser
from patchindex.denoisers.arguments import Label
from patchindex.denoisers.noising import KEPT, check_memory
from patchindex.devices import to_float64
from patchindex.errors import InputError, PatchIndexError
from patchindex.estimators import Estimate
from patchindex.exact import TrajectoryCache
from patchindex.runtime import Progress, as_progress, part_of, plain_state
from patchindex.sampling.conditions import ImageStart, KnownPixels
from patchindex.sampling.draws import starting_noise, step_noise
from patchindex.sampling.grids import Steps, time_grid
from patchindex.sampling.result import SampleResult
from patchindex.sampling.samplers import SAMPLERS, Callback
from patchindex.sampling.trajectory import Trajectory, values_per_step

__all__ = ["Sampling", "sample"]

log = logging.getLogger(__name__)

Labels = Label | Sequence[Label | None] | None


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
        One of `SAMPLERS`: `"ddim"` (deterministic), `"ddpm"` (ancestral), `"euler"` (equal to `"ddim"`),
        `"heun"` (second order, evaluates twice per step), or `"dpmpp"` (second order, evaluates once).
    seed : int
        Seed of the noise and of the estimator. Equal seeds give equal images for any batch size and number
        of threads: the same bytes with exact scores of LS, ELS and bbELS on a CPU, and else up to the
        rounding of float32 sums (up to 1e-4 of the range after 19 steps).
    x_T : Tensor or array, shape (n, C, H, W), optional
        Noise to start from, in place of the seed's.
    callback : callable, optional
        Called after each step of each batch with a dict: `i`, `t`, `t_next`, `x` (the image after the step),
        `score`, `estimate` (both of the first evaluation of the step), `first` (number of the batch's first
        image).
    spacing : str
        Spacing of the times: `"uniform"` (the grid of the paper's code), `"karras"` or `"log-snr"`; see
        `time_grid`.
    label : int or str, or a sequence of n of them or None, optional
        Number or name, in place of the denoiser's own label; a sequence has one label per image.
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
    sampling = Sampling(
        denoiser, n, steps, sampler, seed, x_T, callback, spacing=spacing, label=label, start=start,
        known=known, trajectory=trajectory, batch_size=batch_size, first=first,
    )  # fmt: skip
    if trajectory:
        check_memory(len(sampling.x_T), sampling.values_per_image)
    progress = as_progress(progress)
    sampling.prepare(progress)
    return SampleResult.cat([sampling.draw(lo, hi, progress) for lo, hi in sampling.batches])


@dataclass
class Sampling:
    """The arguments of `sample` after their checks, to be drawn batch by batch.

    The fields are the arguments of `sample`. After the checks, `n`, `x_T` and `known` are of all images,
    `labels` has a label or None per image, `times` has the grid, `settings` what a `SampleResult` has.

    Examples
    --------
    >>> from patchindex.denoisers import ScoreMachine
    >>> images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    >>> s = Sampling(ScoreMachine(images, machine="IS"), n=5, steps=3, batch_size=2)
    >>> s.batches
    [(0, 2), (2, 4), (4, 5)]
    >>> s.batches_of([0, 2, 3, 4])
    [(0, 1), (2, 4), (4, 5)]
    >>> s.draw(2, 4).images.shape
    torch.Size([2, 1, 8, 8])
    """

    denoiser: Denoiser
    n: int | None = None
    steps: Steps = 20
    sampler: str = "ddim"
    seed: int = 0
    x_T: Any = None  # noqa: N815
    callback: Callback | None = None
    _: KW_ONLY
    spacing: str = "uniform"
    label: Labels = None
    start: ImageStart | None = None
    known: KnownPixels | None = None
    trajectory: bool = False
    batch_size: int = 16
    first: int = 0

    def __post_init__(self) -> None:
        denoiser, sampler = self.denoiser, self.sampler
        if not is_name_in(sampler, SAMPLERS):
            raise InputError(
                f"unknown sampler {sampler!r}", parameter="sampler", remedy=f"use {', '.join(SAMPLERS)}"
            )
        for name, is_right, wanted in (
            ("callback", callable(self.callback), "a function of a step"),
            ("start", isinstance(self.start, ImageStart), "an ImageStart"),
            ("known", isinstance(self.known, KnownPixels), "a KnownPixels"),
        ):
            if getattr(self, name) is not None and not is_right:
                found = type(getattr(self, name)).__name__
                raise InputError(
                    f"must be {wanted}, got {found}", parameter=name, remedy="give one, or leave it out"
                )
        check_least(batch_size=(self.batch_size, 1), first=(self.first, 0), seed=(self.seed, 0))
        self.times = time_grid(self.steps, denoiser.noise, self.spacing)
        given, self.x_T = self.x_T is not None, starting_noise(denoiser, self.n, self.seed, self.x_T)
        n = self.n = len(self.x_T)
        if self.trajectory:
            check_memory(min(n, self.batch_size), self.values_per_image)
        self._x, conditions = self.x_T, dict[str, Any]()
        if self.start is not None:
            self.times = self.start.times(self.times)
            self._x = self.start.noised(denoiser, self.x_T, self.times[0])
            conditions["strength"] = self.start.strength
        if self.known is not None:
            self.known = self.known.prepared(denoiser, n)
            conditions["known_pixels"] = int(self.known.mask.sum())
        self.labels = _labels(denoiser, self.label, n)
        self.settings = {
            "n": n,
            "steps": self.steps if is_whole(self.steps) else self.times,
            "sampler": sampler,
            "spacing": self.spacing,
            "seed": self.seed,
            "x_T": "given" if given else "drawn",
            "label": self.labels[0] if _is_one(self.label) else self.labels,
            "batch_size": self.batch_size,
            **conditions,
            **denoiser.settings,
        }
        for each in dict.fromkeys(self.labels):
            denoiser.check_label(each)
        self.batches = self.batches_of(range(n))

    def batches_of(self, images: Sequence[int]) -> list[tuple[int, int]]:
        """Return the batches of some images, ascending: ranges of up to `batch_size` images of one label."""
        found = []
        for _, group in groupby(enumerate(images), lambda at: (self.labels[at[1]], at[1] - at[0])):
            run = [image for _, image in group]
            for lo in range(run[0], run[-1] + 1, self.batch_size):
                found.append((lo, min(lo + self.batch_size, run[-1] + 1)))
        return found

    @property
    def calls(self) -> int:
        """The number of evaluations of the posterior mean per image, at most."""
        return SAMPLERS[self.sampler].evaluations * (len(self.times) - 1)

    @property
    def values_per_image(self) -> int:
        """The numbers that an image and its trajectory have."""
        shape = self.denoiser.shape
        return KEPT * math.prod(shape) + len(self.times) * values_per_step(shape)

    def prepare(self, progress: Progress | None = None) -> None:
        """Do the work that all batches share."""
        log.info(
            "images: %d, batches: %d, %s, %d evaluations each, seed %d",
            len(self.x_T), len(self.batches), self.sampler, self.calls, self.seed,
        )  # fmt: skip
        for label in dict.fromkeys(self.labels):
            self.denoiser.prepare(label, progress)

    def draw(self, lo: int, hi: int, progress: Progress | None = None) -> SampleResult:
        """Draw images lo to hi - 1, a batch. The result has the settings of the whole sample."""
        total = len(self.x_T)
        batch = _Batch(self, lo, hi, part_of(as_progress(progress), "sampling", lo / total, hi / total))
        images = batch.draw(self._x[lo:hi])
        path = Trajectory.of(batch.steps) if self.trajectory else None
        return SampleResult(images, self.x_T[lo:hi], batch.records, self.settings, path)


def _labels(denoiser: Denoiser, label: Labels, n: int) -> list[int | None]:
    """Return the number of a label per image; None for all labels."""
    if _is_one(label):
        labels: list[Any] = [label] * n
    else:
        labels = list(label) if isinstance(label, Sequence | np.ndarray) else []
    if len(labels) != n or not all(map(_is_one, labels)):
        raise InputError(
            f"must be a label, or one for each of {n} images, got {label!r}",
            parameter="label",
            remedy="give a number or a name, or a list of n",
        )
    numbers = [denoiser.label if each is None else denoiser.number_of(each) for each in labels]
    return [each if each is None else int(each) for each in numbers]


def _is_one(label: Any) -> bool:
    """Return whether this is the label of one image, or None."""
    return label is None or is_whole(label) or isinstance(label, str)


class _Batch:
    """The images of a batch, which share their label."""

    def __init__(self, sampling: Sampling, lo: int, hi: int, progress: Progress) -> None:
        self._sampling, self._noise, self._progress = sampling, sampling.x_T[lo:hi], progress
        self._image_ids = range(sampling.first + lo, sampling.first + hi)
        self._label = sampling.labels[lo]
        self._known = None if sampling.known is None else sampling.known.rows(lo, hi)
        self._cache: TrajectoryCache = {}
        self._estimate: Estimate | None = None  # the first one of the step
        self.records: list[dict[str, Any]] = []
        self.steps: list[tuple[float, int | None, Tensor, Estimate]] = []

    def draw(self, x: Tensor) -> Tensor:
        """Return the images, from noisy images at the first time."""
        sampling, sampler = self._sampling, SAMPLERS[self._sampling.sampler]
        draw = {"draw": step_noise(sampling.seed, self._image_ids)} if sampler.random else {}
        with plain_state():
            images = sampler.function(
                self._score, x, sampling.times, sampling.denoiser.noise, self._end_step, **draw
            )
        images = self._held(images, sampling.times[-1])
        log.info(
            "images %d to %d: %.1f s",
            self._image_ids[0], self._image_ids[-1], sum(record["seconds"] for record in self.records),
        )  # fmt: skip
        if not bool(torch.isfinite(images).all()):
            raise PatchIndexError("an image is not finite", where="sample", remedy="check the sampler")
        sampling.denoiser.check_course(images, sampling.times[-1], len(self.records) + 1)
        return images

    def _held(self, x: Tensor, t: float) -> Tensor:
        """Return x with known pixels at their values, noised to time t."""
        if self._known is None:
            return x
        return self._known.held(x, self._noise, self._sampling.denoiser.noise(t))

    def _score(self, x: Tensor, t: float) -> Tensor:
        """Return the score, and record the evaluation."""
        sampling, done = self._sampling, len(self.records)
        denoiser, total = sampling.denoiser, sampling.calls
        x, k, start = self._held(x, t), denoiser.scale_at(t), time.perf_counter()
        denoiser.check_course(x, t, done + 1)
        estimate = denoiser.posterior_mean(
            x,
            t,
            label=self._label,
            seed=sampling.seed,
            image_ids=self._image_ids,
            progress=part_of(self._progress, "sampling", done / total, min((done + 1) / total, 1.0)),
            cache=self._cache,
        )
        self.records.append(
            {
                "first": self._image_ids[0],
                "images": len(self._image_ids),
                "t": t,
                "k": k,
                "seconds": round(time.perf_counter() - start, 4),
                "patches_evaluated": estimate.patches_evaluated,
                "codes_scanned": estimate.codes_scanned,
                "captured_mass": _rounded(to_float64(estimate.captured_mass).mean(), 6),
                "ess": _rounded(to_float64(estimate.ess).mean(), 3),
                "stderr": _rounded(to_float64(estimate.stderr).square().mean().sqrt(), 6),
                "exact_pixels": estimate.exact_pixels,
            }
        )
        log.debug(
            "images from %(first)d: t %(t).3f, k %(k)s, %(patches_evaluated)d patches, "
            "%(exact_pixels)d pixels exactly, standard error %(stderr)s, %(seconds).2f s",
            self.records[-1],
        )
        if self._estimate is None:
            self._estimate = estimate
            if sampling.trajectory:
                self.steps.append((t, k, x, estimate))
        return denoiser.score_of(estimate.mean, x, t)

    def _end_step(self, step: dict[str, Any]) -> None:
        """Pass a step on to the callback."""
        estimate, self._estimate = self._estimate, None
        if self._sampling.callback is not None:
            x = self._held(step["x"], step["t_next"])
            self._sampling.callback({**step, "x": x, "estimate": estimate, "first": self._image_ids[0]})


def _rounded(average: Tensor, digits: int) -> float | None:
    """Return an average over pixels; None instead of NaN, which JSON does not have."""
    value = float(average)
    return None if math.isnan(value) else round(value, digits)
