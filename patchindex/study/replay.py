"""`Replay`: images and posterior means of a network and of denoisers, from the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from patchindex.dask_tasks import on_workers
from patchindex.denoisers import Denoiser
from patchindex.errors import Option
from patchindex.exact import TrajectoryCache, load_kernel
from patchindex.runtime import Progress, no_progress, part_of, plain_state
from patchindex.sampling import ddim, draw_noise
from patchindex.schedules.frames import with_noise
from patchindex.study.noised import MEASURES, Noised, fresh_noise
from patchindex.study.parts import Layout, Parts

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["NETWORK", "Replay", "images_in", "layout"]

NETWORK = "network"  # name of the network in results
TRAJECTORY = "trajectory"
PROBE = "probe"  # a posterior mean that tells networks apart
SAME = 0.001  # in [-1, 1]: devices and numbers of threads round differently
KINDS = (TRAJECTORY, "training", "held-out")  # of noisy images; each has random draws of its own
FIRST = 1_000_000  # number of the first image of a kind, for the draws of estimators, per kind

T = TypeVar("T")
Visit = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Replay:
    """A network beside denoisers.

    Attributes
    ----------
    network : Denoiser
    parts : Parts
        Finished results: all methods leave out the images that have results.
    labels : sequence of int or None
        Image i has the label `labels[i % len(labels)]`.
    steps : int
        Grid points of the times at which posterior means are compared.
    seed, batch_size : int
    progress : Progress
    client : distributed.Client, optional
        A cluster that computes the batches.
    x_T : Tensor, shape (n, C, H, W), optional
        Noise of all images, in place of the seed's.
    """

    network: Denoiser
    parts: Parts
    labels: Sequence[int | None]
    steps: int
    seed: int
    batch_size: int
    progress: Progress = no_progress
    client: Client | None = None
    x_T: Tensor | None = None  # noqa: N815

    @property
    def times(self) -> list[float]:
        """The times of the grid, highest noise first."""
        return [i / self.steps for i in range(self.steps - 1, 0, -1)]

    def start(self, n: int) -> Tensor:
        """Return the noise that the first n images start from, on the CPU."""
        return draw_noise(self.seed, n, self.network.shape) if self.x_T is None else self.x_T[:n].cpu()

    def label_of(self, image: int) -> int | None:
        """Return the label of an image."""
        return self.labels[image % len(self.labels)]

    def check_network(self, *, overwrite: bool) -> None:
        """Refuse results of a network with other weights: its posterior mean has changed.

        `overwrite` deletes the results of all denoisers.
        """
        noise, t = draw_noise(self.seed, 1, self.network.shape), self.times[len(self.times) // 2]
        mean = self.network.posterior_mean(noise, t, label=self.label_of(0)).mean.cpu().numpy()
        if not self.parts.missing(NETWORK, PROBE, [0]):
            before = self.parts.get(NETWORK, PROBE, [0])["mean"]
            if np.abs(before - mean).max() < SAME:
                return
            self.parts.refuse("has results of a network with other weights", overwrite=overwrite)
        elif self.parts.any():
            self.parts.refuse("has results of another network", overwrite=overwrite)
        self.parts.add(NETWORK, PROBE, [0], mean=mean)

    def draw(self, name: str, denoiser: Denoiser, n: int, steps: int, stage: str) -> None:
        """Draw images by DDIM; each result has `images` and `seconds`."""
        kind, noise = images_in(steps), self.start(n)
        missing = self.parts.missing(name, kind, range(n))
        tasks = [(batch, noise[batch.images], steps) for batch in self._batches(missing, int)]
        for (batch, *_), (images, seconds) in self._each(_draw, denoiser, tasks, stage):
            each = np.full(len(batch.images), seconds / len(batch.images))
            self.parts.add(name, kind, batch.images, images=images, seconds=each)

    def trajectory(self, n: int) -> Noised:
        """Return the noisy images and the posterior means of the network along its own trajectory."""
        noise, missing = self.start(n), self.parts.missing(NETWORK, TRAJECTORY, range(n))
        tasks = [(batch, noise[batch.images], self.steps) for batch in self._batches(missing, int)]
        found = self._each(_draw_trajectory, self.network, tasks, f"{NETWORK}: trajectory")
        for (batch, *_), (x, means) in found:
            self.parts.add(NETWORK, TRAJECTORY, batch.images, x=x, mean=means)
        return Noised(**self.parts.get(NETWORK, TRAJECTORY, range(n)))

    def noised(self, kind: str, clean: Tensor, *, overwrite: bool) -> Noised:
        """Noise clean images, one noise per image for all times, and estimate them by the network.

        Refuse results of other clean images. With `overwrite`, delete the results of this kind for all
        denoisers.
        """
        noise = fresh_noise(self.seed, KINDS.index(kind), len(clean), self.network.shape)
        missing = self.parts.missing(NETWORK, kind, range(len(clean)))
        kept = sorted({*range(len(clean))} - {*missing})
        if kept and not np.array_equal(self.parts.get(NETWORK, kind, kept)["clean"], clean[kept].numpy()):
            what = f"has results of other {kind} images"
            self.parts.refuse(what, overwrite=overwrite, kind=kind, last=NETWORK)
            missing = [*range(len(clean))]
        tasks = []
        for batch in self._batches(missing, int):
            signal, own_noise = clean[batch.images], noise[batch.images]
            betas = [self.network.noise(t) for t in self.times]
            x = torch.stack([with_noise(signal, own_noise, beta) for beta in betas], 1)
            tasks.append((batch, x.numpy(), self.times))
        found = self._each(_estimate, self.network, tasks, f"{NETWORK}: {kind} images")
        for (batch, x, _), (means, _) in found:
            self.parts.add(NETWORK, kind, batch.images, x=x, mean=means, clean=clean[batch.images].numpy())
        return Noised(**self.parts.get(NETWORK, kind, range(len(clean))))

    def estimate(self, name: str, denoiser: Denoiser, inputs: Mapping[str, Noised], stage: str) -> None:
        """Compare the posterior means of a denoiser with the network's; results have a row for each time.

        A batch has images of all kinds, because some denoisers do much work once for all images of a label.
        """
        images = [
            (kind, image)
            for kind, noised in inputs.items()
            for image in self.parts.missing(name, kind, range(len(noised)))
        ]
        tasks = []
        for batch in self._batches(images, lambda each: (1 + KINDS.index(each[0])) * FIRST + each[1]):
            x = np.stack([inputs[kind].x[image] for kind, image in batch.images])
            tasks.append((batch, x, self.times))
        for (batch, *_), (means, seconds) in self._each(_estimate, denoiser, tasks, stage):
            for kind, noised in inputs.items():
                rows = [row for row, (its, _) in enumerate(batch.images) if its == kind]
                if rows:
                    mine = [batch.images[row][1] for row in rows]
                    found = _measures(noised, mine, torch.from_numpy(means[rows]))
                    each = np.tile(np.array(seconds) / len(batch.images), (len(rows), 1))
                    self.parts.add(name, kind, mine, **found, seconds=each)

    def _batches(self, images: Sequence[T], number_of: Callable[[T], int]) -> Iterator[_Batch]:
        """Yield batches of images that share their label."""

        def label_of(image: T) -> int | None:
            return self.label_of(number_of(image) % FIRST)

        for label in dict.fromkeys(map(label_of, images)):
            mine = [image for image in images if label_of(image) == label]
            for first in range(0, len(mine), self.batch_size):
                batch = mine[first : first + self.batch_size]
                yield _Batch(batch, [number_of(image) for image in batch], label, self.seed)

    def _each(
        self, function: Callable[..., Any], denoiser: Denoiser, tasks: Sequence[tuple[Any, ...]], stage: str
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Yield each task with `function(denoiser, *task)`, computed here or by the workers of a cluster."""
        if self.client is None:
            for done, task in enumerate(tasks):
                part = part_of(self.progress, stage, done / len(tasks), (done + 1) / len(tasks))
                yield task, function(denoiser, *task, progress=part)
            return
        resume = ("go on with ", Option("resume", True))
        yield from on_workers(self.client, function, denoiser, tasks, partial(self.progress, stage), *resume)


@dataclass(frozen=True)
class _Batch:
    """Images of one label, and the numbers of the images for the random draws of estimators."""

    images: Sequence[Any]
    numbers: Sequence[int]
    label: int | None
    seed: int


def _draw(
    denoiser: Denoiser, batch: _Batch, noise: Tensor, steps: int, progress: Progress = no_progress
) -> tuple[np.ndarray, float]:
    """Return images and the seconds that they took."""
    start = time.perf_counter()
    images = _Estimating(denoiser, batch, progress, steps - 1).ddim(noise, steps)
    return images.cpu().numpy(), time.perf_counter() - start


def _draw_trajectory(
    denoiser: Denoiser, batch: _Batch, noise: Tensor, steps: int, progress: Progress = no_progress
) -> tuple[np.ndarray, np.ndarray]:
    """Return the noisy images and posterior means of the steps, each of shape (images, times, C, H, W)."""
    estimating = _Estimating(denoiser, batch, progress, steps - 1)
    seen: list[tuple[Tensor, Tensor]] = []
    estimating.ddim(noise, steps, lambda *step: seen.append(step))
    x, means = (torch.stack(each, 1).cpu().numpy() for each in zip(*seen, strict=True))
    return x, means


def _estimate(
    denoiser: Denoiser,
    batch: _Batch,
    x: np.ndarray,
    times: Sequence[float],
    progress: Progress = no_progress,
) -> tuple[np.ndarray, list[float]]:
    """Return the posterior means of noisy images (images, times, C, H, W), and the seconds of each time."""
    estimating = _Estimating(denoiser, batch, progress, len(times))
    means, seconds = np.empty_like(x), []
    for step, t in enumerate(times):
        start = time.perf_counter()
        means[:, step] = estimating(torch.from_numpy(x[:, step]), t).cpu().numpy()
        seconds.append(time.perf_counter() - start)
    return means, seconds


def _measures(noised: Noised, images: Sequence[int], means: Tensor) -> dict[str, np.ndarray]:
    """Return the measures of the posterior means of some images, each of shape (images, times)."""
    steps = [noised.measures(images, step, means[:, step]) for step in range(means.shape[1])]
    return {key: np.stack([found[key] for found in steps], 1) for key in steps[0]}


class _Estimating:
    """Posterior means of a batch at one time after another, with a cache for all times."""

    def __init__(self, denoiser: Denoiser, batch: _Batch, progress: Progress, steps: int) -> None:
        self._denoiser, self._batch, self._progress, self._steps = denoiser, batch, progress, steps
        self._cache: TrajectoryCache = {}
        self._done = 0
        if denoiser.device.type == "cpu":
            load_kernel()  # so that the time of a denoiser has no compilation

    @plain_state()
    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the posterior means."""
        step = part_of(self._progress, "step", self._done / self._steps, (self._done + 1) / self._steps)
        batch = self._batch
        mean = self._denoiser.posterior_mean(
            x,
            t,
            label=batch.label,
            seed=batch.seed,
            image_ids=batch.numbers,
            progress=step,
            cache=self._cache,
        ).mean
        self._done += 1
        step("step", 1.0, 1.0)
        return mean

    def ddim(self, noise: Tensor, steps: int, visit: Visit | None = None) -> Tensor:
        """Draw images; `visit` gets the noisy images and the posterior means of each step."""
        denoiser = self._denoiser

        def model(x: Tensor, t: float) -> Tensor:
            denoiser.check_course(x, t, self._done + 1)
            mean = self(x, t)
            if visit is not None:
                visit(x, mean)
            return denoiser.score_of(mean, x, t)

        images = ddim(model, noise.to(denoiser.device), steps, denoiser.noise)
        denoiser.check_course(images, 0.0, self._done + 1)
        return images


IMAGES = "images-"


def images_in(steps: int) -> str:
    """Return the kind of the results that are images drawn on a grid of `steps` points."""
    return f"{IMAGES}{steps}"


def layout(shape: tuple[int, int, int], steps: int) -> Layout:
    """Return the shapes of all results, for images of a shape and a grid of `steps` points."""

    def shapes(name: str, kind: str) -> dict[str, tuple[int, ...]]:
        times = steps - 1
        if kind == PROBE:
            return {"mean": shape}
        if kind.startswith(IMAGES):
            return {"images": shape, "seconds": ()}
        if name != NETWORK:
            return {measure: (times,) for measure in (*MEASURES, "seconds")}
        noised: dict[str, tuple[int, ...]] = {"x": (times, *shape), "mean": (times, *shape)}
        return noised if kind == TRAJECTORY else {**noised, "clean": shape}

    return shapes
