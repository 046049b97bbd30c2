"""Samplers: free functions over any score `model(x, t)`, and `sample`, which draws with a denoiser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.denoisers.base import Denoiser
from patchindex.errors import InputError, PatchIndexError
from patchindex.estimators import Estimate
from patchindex.exact import TrajectoryCache
from patchindex.runtime import Progress, as_progress, memory_limit, part_of, plain_state
from patchindex.schedules import NoiseSchedule

__all__ = ["SAMPLERS", "SampleResult", "ddim", "draw_noise", "sample", "starting_noise"]

IMAGE_BYTES = 8  # per value: the noise and the image, float32

Callback = Callable[[dict[str, Any]], None]


def draw_noise(seed: int, n: int, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise (n, C, H, W) in float32; image i depends on the seed and on i only.

    Raises InputError when noise and images need more memory than the process may use.
    """
    check_least(n=(n, 0), seed=(seed, 0))
    need, limit = IMAGE_BYTES * n * math.prod(shape), memory_limit()
    if need > limit:
        raise InputError(
            f"{n} images take {need / 2**30:,.0f} GiB, and this process may use {limit / 2**30:,.1f}",
            parameter="n",
            remedy="draw fewer at a time",
        )
    noise = np.empty((n, *shape), np.float32)
    for i in range(n):
        noise[i] = np.random.default_rng([seed, i]).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(noise)


def ddim(
    model: Callable[[Tensor, float], Tensor],
    x: Tensor,
    steps: int,
    noise: NoiseSchedule,
    callback: Callback | None = None,
) -> Tensor:
    """Integrate by deterministic DDIM (Song, Meng & Ermon, arXiv 2010.02502) on the grid of the paper's code.

    For i = steps - 1, ..., 1 a step goes from t = i / steps to (i - 1) / steps:

        eps = -sqrt(beta) score(x, t)
        x   = r x + (sqrt(beta') - r sqrt(beta)) eps,    r = sqrt((1 - beta') / (1 - beta))

    Parameters
    ----------
    model : callable
        `model(x, t)` returns the score, shape of x.
    x : Tensor, shape (n, C, H, W)
        Noise, at t = 1.
    steps : int
        Steps of the time grid, at least 2; `steps - 1` of them are taken.
    noise : callable
        The noise schedule, from t to beta.
    callback : callable, optional
        Called after each step with a dict of `i`, `t`, `x` (the image after the step), `score`.

    Returns
    -------
    Tensor, shape (n, C, H, W)
        The images, at t = 0.
    """
    for i in range(steps - 1, 0, -1):
        t = i / steps
        beta, beta_next = noise(t), noise((i - 1) / steps)
        score = model(x, t)
        r = ((1 - beta_next) / (1 - beta)) ** 0.5
        x = r * x - (beta_next**0.5 - r * beta**0.5) * beta**0.5 * score
        if callback is not None:
            callback({"i": i, "t": t, "x": x, "score": score})
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {"ddim": ddim}


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
        For each step of each batch: `first` (number of the batch's first image), `t`, `k`, `seconds`,
        `patches_evaluated`, `codes_scanned`, `exact_pixels`, the averages of `captured_mass` and `ess` over
        pixels, and the root mean square of `stderr`. None stands for a value that the denoiser does not have.
    settings : dict
        Arguments of `sample` and settings of the denoiser.
    """

    images: Tensor
    x_T: Tensor  # noqa: N815  (the field's name for it)
    steps: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any]


def sample(
    denoiser: Denoiser,
    n: int | None = None,
    steps: int = 20,
    sampler: str = "ddim",
    seed: int = 0,
    x_T: Tensor | np.ndarray | None = None,
    callback: Callback | None = None,
    *,
    label: int | None = None,
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
    steps : int
        Steps of the time grid, at least 2.
    sampler : str
        One of `SAMPLERS`.
    seed : int
        Seed of the noise and of the estimator. Equal seeds give equal images for any batch size and number
        of threads, up to the rounding of float32 sums (about 1e-4 of the range after 19 steps).
    x_T : Tensor or array, shape (n, C, H, W), optional
        Noise to start from, in place of the seed's.
    callback : callable, optional
        Called after each step of each batch with a dict: `i`, `t`, `x`, `score`, `estimate`, `first` (number
        of the batch's first image).
    label : int, optional
        In place of the denoiser's own label.
    batch_size : int
        Images per batch.
    first : int
        Number of the first image; the estimator's random draws depend on it. For a part of a larger set.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    SampleResult

    Raises
    ------
    InputError
        When a setting is unknown or out of range, `x_T` does not fit, or the images take more memory than
        the process may use.
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
    check_least(steps=(steps, 2), batch_size=(batch_size, 1), first=(first, 0), seed=(seed, 0))
    noise = starting_noise(denoiser, n, seed, x_T)
    progress = as_progress(progress)
    denoiser.prepare(label, progress)
    drawing = _Drawing(denoiser, SAMPLERS[sampler], steps, label, seed, callback)
    images, records = [], []
    for start in range(0, len(noise), batch_size):
        batch = noise[start : start + batch_size]
        done, end = start / len(noise), (start + len(batch)) / len(noise)
        drawn, taken = drawing.batch(batch, first + start, part_of(progress, "sampling", done, end))
        images.append(drawn)
        records += taken
    settings = {
        "n": len(noise),
        "steps": steps,
        "sampler": sampler,
        "seed": seed,
        "x_T": "given" if x_T is not None else "drawn",
        "label": denoiser.label if label is None else label,
        "batch_size": batch_size,
        **denoiser.settings,
    }
    return SampleResult(torch.cat(images), noise, records, settings)


@dataclass(frozen=True)
class _Drawing:
    """The settings that all batches share."""

    denoiser: Denoiser
    sampler: Callable[..., Tensor]
    steps: int
    label: int | None
    seed: int
    callback: Callback | None

    def batch(self, noise: Tensor, first: int, progress: Progress) -> tuple[Tensor, list[dict[str, Any]]]:
        """Draw one batch; return its images and the record of each step."""
        denoiser, steps = self.denoiser, self.steps - 1
        records: list[dict[str, Any]] = []
        estimates: list[Estimate] = []
        cache: TrajectoryCache = {}

        def model(x: Tensor, t: float) -> Tensor:
            start, done = time.perf_counter(), len(records)
            denoiser.check_course(x, t, done + 1)
            estimate = denoiser.posterior_mean(
                x,
                t,
                label=self.label,
                seed=self.seed,
                image_ids=range(first, first + len(x)),
                progress=part_of(progress, "sampling", done / steps, (done + 1) / steps),
                cache=cache,
            )
            estimates[:] = [estimate]
            records.append(
                {
                    "first": first,
                    "t": t,
                    "k": denoiser.scale_at(t),
                    "seconds": round(time.perf_counter() - start, 4),
                    "patches_evaluated": estimate.patches_evaluated,
                    "codes_scanned": estimate.codes_scanned,
                    "captured_mass": _rounded(estimate.captured_mass.double().mean(), 6),
                    "ess": _rounded(estimate.ess.double().mean(), 3),
                    "stderr": _rounded(estimate.stderr.double().square().mean().sqrt(), 6),
                    "exact_pixels": estimate.exact_pixels,
                }
            )
            return denoiser.score_of(estimate.mean, x, t)

        def report(step: dict[str, Any]) -> None:
            if self.callback is not None:
                self.callback({**step, "estimate": estimates[0], "first": first})

        with plain_state():
            images = self.sampler(model, noise, self.steps, denoiser.noise, report)
        if not bool(torch.isfinite(images).all()):
            raise PatchIndexError("an image is not finite", where="sample", remedy="check the sampler")
        denoiser.check_course(images, 0.0, len(records) + 1)
        return images, records


def _rounded(average: Tensor, digits: int) -> float | None:
    """Return an average over pixels; None instead of NaN, which JSON does not have."""
    value = float(average)
    return None if math.isnan(value) else round(value, digits)


def starting_noise(denoiser: Denoiser, n: int | None, seed: int, x_T: Tensor | np.ndarray | None) -> Tensor:
    """Return the noise that `sample` starts from, on the denoiser's device: `x_T`, or the seed's."""
    check_least(n=(1 if n is None else n, 1), seed=(seed, 0))
    if x_T is None:
        return draw_noise(seed, 1 if n is None else n, denoiser.shape).to(denoiser.device)
    noise = denoiser.check_x(x_T if isinstance(x_T, Tensor) else _as_tensor(x_T), "x_T")
    if n is not None and n != len(noise):
        raise InputError(f"is {n}, but x_T has {len(noise)} images", parameter="n", remedy="leave n out")
    return noise


def _as_tensor(x_T: Any) -> Tensor:
    """Return an array of floats, of any byte order, strides and width, as a tensor."""
    try:
        array = np.asarray(x_T)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind != "f":
        raise InputError(
            f"is no array of floats: {type(x_T).__name__}", parameter="x_T", remedy="give floats"
        )
    return torch.from_numpy(np.ascontiguousarray(array, np.float64 if array.itemsize > 4 else np.float32))
