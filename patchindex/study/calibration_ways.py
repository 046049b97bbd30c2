"""The two ways to calibrate: similarity to a network along its trajectories, and error on held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least, check_optional
from patchindex.denoisers.base import Denoiser
from patchindex.devices import resolve_device
from patchindex.errors import InputError, Option
from patchindex.images import ImagesLike, open_images
from patchindex.images.by_label import TrainingImages, as_tensor, to_unit
from patchindex.images.fingerprints import all_fingerprints
from patchindex.networks.network import Network
from patchindex.random_streams import random_stream
from patchindex.runtime import Progress
from patchindex.sampling import ddim, draw_noise
from patchindex.schedules import NoiseSchedule, noise_schedule
from patchindex.schedules.frames import with_noise
from patchindex.store.checksums import fingerprint
from patchindex.study.calibration import COSINE, MSE
from patchindex.study.parts import compared_settings
from patchindex.study.scale_machine import Noisy, ScaleMachine

__all__ = ["CalibrationOptions", "OnImages", "OnNetwork", "Step"]


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of `calibrate`.

    Attributes
    ----------
    train_windows : str, optional
        `"valid"` (default) or `"wrapped"`, for ELS. An index has its own.
    measure : str
        The scale of a sample is the one with the largest `"cosine"` similarity of the scores, or with the
        least `"mse"` of the posterior means, which is also the least squared error of the scores. Without a
        network it is always `"mse"`.
    by_label : bool, optional
        Compare an image with the training images of its label. The labels cycle over the samples of a
        network; held-out images have their own. By default True for a class-conditional network.
    label : int, optional
        Use this label only.
    other_images : bool
        Accept images that the network was not trained on, or only some of its images.
    estimator : str
        `"exact"`, or `"auto"`: with a network, scales that the index has go through `auto`.
    pixels : int, optional
        Evaluate a random subset of this many pixels of each image, all by default. The measures are then
        estimates of those over all pixels. Small scales take less time, scales above 9 about the same.
    ratio : float
        A machine memorises at a noise level where its error on held-out images is more than `ratio` times
        its error on training images.
    noise : str or callable
        Noise schedule of held-out images. A network has its own.
    seed : int
        Seed of the noise, the split and the subset of pixels.
    batch_size : int
        Images that are compared at a time.
    device, threads, memory
        As for `ScoreMachine`.
    """

    train_windows: str | None = None
    measure: str = COSINE
    by_label: bool | None = None
    label: int | None = None
    other_images: bool = False
    estimator: str = "exact"
    pixels: int | None = None
    ratio: float = 2.0
    noise: str | NoiseSchedule = "cosine"
    seed: int = 0
    batch_size: int = 8
    device: str | torch.device | None = None
    threads: int | None = None
    memory: int | str | None = None

    def __post_init__(self) -> None:
        check_optional(pixels=(self.pixels, 1))
        check_least(seed=(self.seed, 0), batch_size=(self.batch_size, 1))
        if not self.ratio > 1:
            raise InputError(
                f"must be above 1, got {self.ratio}", parameter="ratio", remedy="use 2, for example"
            )
        for name, known in (("measure", (COSINE, MSE)), ("estimator", ("exact", "auto"))):
            if getattr(self, name) not in known:
                raise InputError(
                    f"unknown value {getattr(self, name)!r}",
                    parameter=name,
                    remedy=f"use {' or '.join(known)}",
                )


@dataclass(frozen=True)
class Step:
    """A step of the time grid, for some images that share their label."""

    i: int
    t: float
    noisy: Noisy
    target: Tensor  # (B, P, C): the posterior mean of the network, or the clean image
    norms: np.ndarray  # (B,): of each image's score; tells networks apart


@dataclass(frozen=True)
class OnNetwork:
    """The first way: similarity to the scores of a network, along its own trajectories."""

    theory: ScaleMachine
    network: Denoiser
    steps: int
    labels: list[int | None]  # of each sample
    noise: NoiseSchedule
    options: CalibrationOptions
    settings: dict[str, Any]  # compared with the settings of an unfinished run
    reported: dict[str, Any]  # not compared

    @classmethod
    def of(
        cls, theory: ScaleMachine, network: Denoiser, n: int, steps: int, options: CalibrationOptions
    ) -> OnNetwork:
        """Check the settings of the first way."""
        shape = (theory.training.channels, *theory.training.size)
        if network.shape != shape:
            raise InputError(
                f"draws images of shape {network.shape}, not {shape}",
                parameter="network",
                remedy="give the images that it was trained on, with the same resize and crop",
            )
        if isinstance(network, Network) and not options.other_images:
            network.check_images(
                theory.training, remedy=["give its images, or ", Option("other_images", True)]
            )
        label = network.label if options.label is None else options.label
        labels: list[int | None] = [label] * n
        known = getattr(network, "labels", None)  # of a class-conditional network
        if label is None and (known is not None if options.by_label is None else options.by_label):
            known = _labels(theory.training) if known is None else known.tolist()
            labels = [known[j % len(known)] for j in range(n)]
        for each in dict.fromkeys(labels):
            network.check_label(each)
            theory.training.range_of(each)
        settings = {
            "way": "network",
            "measure": options.measure,
            "labels": labels,
            "network": compared_settings(network.settings),
            "noise": network.settings["noise"],
        }
        name = network.settings.get("name") or type(network).__name__
        reported = {"network": network.settings, "network_name": name}
        return cls(theory, network, steps, labels, network.noise, options, settings, reported)

    def trajectories(self, samples: Sequence[int]) -> Iterator[Step]:
        """Yield the steps of the trajectories of some samples, highest noise first."""
        network, label = self.network, self.labels[samples[0]]
        noise = draw_noise(self.options.seed, len(self.labels), network.shape)[list(samples)]
        taken: list[tuple[float, Tensor, Tensor]] = []

        def model(x: Tensor, t: float) -> Tensor:
            network.check_course(x, t, len(taken) + 1)
            mean = network.posterior_mean(x, t, label=label, seed=self.options.seed, image_ids=samples).mean
            taken.append((t, x.cpu(), mean.cpu()))
            return network.score_of(mean, x, t)

        ddim(model, noise.to(network.device), self.steps, network.noise)
        device = resolve_device(self.options.device)
        for i, (t, x, mean) in zip(range(self.steps - 1, 0, -1), taken, strict=True):
            beta = network.noise(t)
            pixels = _some_pixels(self.options, x, i, samples)
            noisy = Noisy(x.to(device, torch.float32), beta, label, samples, pixels)
            target = noisy.flat(mean)
            norms = ((1 - beta) ** 0.5 * target - noisy.flat(x)).flatten(1).norm(dim=1).numpy(force=True)
            yield Step(i, t, noisy, target, norms)

    MEASURES: ClassVar = ("cosine", "mse", "ess")

    def compare(self, step: Step, k: int, progress: Progress) -> dict[str, np.ndarray]:
        """Return the measures of the images at a scale, each (B,)."""
        mean, ess = self.theory.mean(step.noisy, k, progress)
        a, x = (1 - step.noisy.beta) ** 0.5, step.noisy.flat(step.noisy.x)
        ours, theirs = ((a * each - x).flatten(1) for each in (mean, step.target))  # scores times beta
        cosine = (ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1))
        mse = (mean - step.target).square().flatten(1).mean(1)
        found = {"cosine": cosine, "mse": mse, "ess": ess.flatten(1).mean(1)}
        return {name: values.numpy(force=True) for name, values in found.items()}


@dataclass(frozen=True)
class OnImages:
    """The second way: the denoising error on held-out images, and on the same images as training images."""

    theory: ScaleMachine
    images: np.ndarray  # uint8 (n, H, W, C)
    steps: int
    labels: list[int | None]
    noise: NoiseSchedule
    options: CalibrationOptions
    settings: dict[str, Any]  # compared with the settings of an unfinished run
    reported: dict[str, Any]  # not compared

    @classmethod
    def of(
        cls,
        theory: ScaleMachine,
        held_out: ImagesLike | None,
        n: int,
        steps: int,
        options: CalibrationOptions,
    ) -> OnImages:
        """Choose the held-out images; none of them, and no copy of them, is a training image."""
        source = theory.training.source
        mine = source if held_out is None else open_images(held_out)
        if mine.shape[1:] != source.shape[1:]:
            raise InputError(
                f"images have shape {mine.shape[1:]}, the training images {source.shape[1:]}",
                parameter="held_out",
                remedy="bring them to the same size and channels",
            )
        usable = np.arange(len(mine))
        if options.label is not None:
            if mine.labels is None:
                raise InputError(
                    "the held-out images have no labels", parameter="held_out", remedy="give labels"
                )
            usable = np.flatnonzero(mine.labels == options.label)
        fingerprints = all_fingerprints(source)
        if held_out is not None:
            usable = usable[~np.isin(all_fingerprints(mine)[usable], fingerprints)]
        left = len(usable) - (held_out is None)  # one training image has to be left
        if n > left:
            unseen = "" if held_out is None else " that are not training images"
            raise InputError(
                f"is {n}, but there are {left} images{unseen}", parameter="n", remedy="use a smaller number"
            )
        rng = random_stream(options.seed, len(mine))
        chosen = np.sort(rng.choice(usable, n, replace=False))
        if held_out is None:
            # Copies of a held-out image are no training images either.
            kept = np.flatnonzero(~np.isin(fingerprints, fingerprints[chosen]))
            if not len(kept):
                raise InputError(
                    "leaves no training image: all are equal", parameter="n", remedy="use a smaller number"
                )
            theory = replace(theory, training=TrainingImages(source.subset(kept)))
        labels: list[int | None] = [options.label] * n
        if options.by_label and options.label is None:
            if mine.labels is None:
                raise InputError(
                    "the held-out images have no labels", parameter="by_label", remedy="leave it out"
                )
            chosen = chosen[np.argsort(mine.labels[chosen], kind="stable")]
            labels = mine.labels[chosen].tolist()
        for each in dict.fromkeys(labels):
            theory.training.range_of(each)
        images = mine.read(chosen)
        noise = noise_schedule(options.noise)
        settings = {
            "way": "held-out",
            "measure": MSE,
            "labels": labels,
            "held_out_ids": chosen.tolist(),
            "held_out_fingerprint": fingerprint(images),
            "noise": getattr(noise, "__name__", str(noise)),
        }
        return cls(theory, images, steps, labels, noise, options, settings, {"held_out": mine.name})

    def trajectories(self, samples: Sequence[int]) -> Iterator[Step]:
        """Yield some images with the noise of each step, highest noise first."""
        clean = to_unit(as_tensor(self.images[list(samples)])).permute(0, 3, 1, 2).contiguous()
        device = resolve_device(self.options.device)
        for i in range(self.steps - 1, 0, -1):
            t = i / self.steps
            beta = self.noise(t)
            eps = [
                random_stream(self.options.seed, j, i).standard_normal(clean.shape[1:], np.float32)
                for j in samples
            ]
            x = with_noise(clean, torch.from_numpy(np.stack(eps)), beta)
            pixels = _some_pixels(self.options, x, i, samples)
            noisy = Noisy(x.to(device), beta, self.labels[samples[0]], samples, pixels)
            yield Step(i, t, noisy, noisy.flat(clean), np.zeros(len(x)))

    MEASURES: ClassVar = ("mse", "train_mse", "ess", "train_ess")

    def compare(self, step: Step, k: int, progress: Progress) -> dict[str, np.ndarray]:
        """Return errors of the images at a scale, each (B,): as they are, and as one more training image."""
        theory, noisy = self.theory, step.noisy
        state = theory.state(noisy, k, progress)
        found = []
        for b, j in enumerate(noisy.numbers):
            alone = replace(theory, training=TrainingImages(open_images(self.images[j : j + 1], axes="NHWC")))
            held, seen = state[b : b + 1], alone.state(replace(noisy.one(b), label=None), k)
            mse, ess = _error(held.mean(), step.target[b]), float(held.ess().mean())
            seen.merge(held)
            found.append(
                {
                    "mse": mse,
                    "train_mse": _error(seen.mean(), step.target[b]),
                    "ess": ess,
                    "train_ess": float(seen.ess().mean()),
                }
            )
        return {name: np.array([each[name] for each in found]) for name in found[0]}


def _error(mean: Tensor, target: Tensor) -> float:
    return float((mean - target).square().mean())


def _labels(training: TrainingImages) -> list[int]:
    if training.labels is None:
        raise InputError(
            "the images have no labels", parameter="by_label", remedy=["give ", Option("labels")]
        )
    return [int(label) for label in np.unique(training.labels)]


def _some_pixels(
    options: CalibrationOptions, x: Tensor, i: int, samples: Sequence[int]
) -> list[Tensor] | None:
    """Return the raster numbers of the pixels to evaluate of each image, None for all."""
    area = x[0, 0].numel()
    if options.pixels is None or options.pixels >= area:
        return None
    chosen = (
        random_stream(options.seed, j, i, 1).choice(area, options.pixels, replace=False) for j in samples
    )
    return [torch.from_numpy(np.sort(each)) for each in chosen]
