"""`Replay`: images and posterior means of a network and of denoisers, from the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from patchindex.denoisers import Denoiser
from patchindex.exact import TrajectoryCache
from patchindex.runtime import Progress, no_progress, part_of
from patchindex.sampling import ddim, draw_noise
from patchindex.study.noised import MEASURES, Noised, fresh_noise
from patchindex.study.parts import Layout, Parts

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
    """

    network: Denoiser
    parts: Parts
    labels: Sequence[int | None]
    steps: int
    seed: int
    batch_size: int
    progress: Progress = no_progress

    @property
    def times(self) -> list[float]:
        """The times of the grid, highest noise first."""
        return [i / self.steps for i in range(self.steps - 1, 0, -1)]

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
        """Draw images by DDIM from the noise of the seed; each result has `images` and `seconds`."""
        kind = images_in(steps)
        noise = draw_noise(self.seed, n, denoiser.shape)
        missing = self.parts.missing(name, kind, range(n))
        for label, batch, progress in self._batches(missing, stage, self.label_of):
            start = time.perf_counter()
            images = self._ddim(denoiser, noise[batch], steps, label, batch, progress)
            seconds = np.full(len(batch), (time.perf_counter() - start) / len(batch))
            self.parts.add(name, kind, batch, images=images.cpu().numpy(), seconds=seconds)

    def trajectory(self, n: int) -> Noised:
        """Return the noisy images and the posterior means of the network along its own trajectory."""
        noise = draw_noise(self.seed, n, self.network.shape)
        stage = f"{NETWORK}: trajectory"
        missing = self.parts.missing(NETWORK, TRAJECTORY, range(n))
        for label, batch, progress in self._batches(missing, stage, self.label_of):
            seen: list[list[Tensor]] = [[], []]

            def keep(x: Tensor, mean: Tensor, seen: list[list[Tensor]] = seen) -> None:
                seen[0].append(x)
                seen[1].append(mean)

            self._ddim(self.network, noise[batch], self.steps, label, batch, progress, keep)
            x, means = (torch.stack(each, 1).cpu().numpy() for each in seen)
            self.parts.add(NETWORK, TRAJECTORY, batch, x=x, mean=means)
        return Noised(**self.parts.get(NETWORK, TRAJECTORY, range(n)))

    def noised(self, kind: str, clean: Tensor) -> Noised:
        """Noise clean images, one noise per image for all times, and estimate them by the network."""
        noise = fresh_noise(self.seed, KINDS.index(kind), len(clean), self.network.shape)
        missing = self.parts.missing(NETWORK, kind, range(len(clean)))
        kept = sorted({*range(len(clean))} - {*missing})
        if kept and not np.array_equal(self.parts.get(NETWORK, kind, kept)["clean"], clean[kept].numpy()):
            self.parts.refuse(f"has results of other {kind} images", overwrite=False)
        for label, batch, _ in self._batches(missing, f"{NETWORK}: {kind} images", self.label_of):
            x, means = [], []
            for t in self.times:
                beta = self.network.noise(t)
                x.append((1 - beta) ** 0.5 * clean[batch] + beta**0.5 * noise[batch])
                mean = self.network.posterior_mean(
                    x[-1], t, label=label, seed=self.seed, image_ids=batch
                ).mean
                means.append(mean.cpu())
            self.parts.add(
                NETWORK, kind, batch,
                x=torch.stack(x, 1).numpy(), mean=torch.stack(means, 1).numpy(), clean=clean[batch].numpy(),
            )  # fmt: skip
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
        for label, batch, progress in self._batches(images, stage, lambda each: self.label_of(each[1])):
            mine = {kind: [image for its, image in batch if its == kind] for kind in inputs}
            for kind, found in self._estimate(denoiser, inputs, mine, label, progress).items():
                self.parts.add(name, kind, mine[kind], **found)

    def _estimate(
        self,
        denoiser: Denoiser,
        inputs: Mapping[str, Noised],
        images: Mapping[str, Sequence[int]],
        label: int | None,
        progress: Progress,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return the measures of a batch by kind, each of shape (images, times)."""
        kinds = [kind for kind in inputs if images[kind]]
        numbers = [(1 + KINDS.index(kind)) * FIRST + image for kind in kinds for image in images[kind]]
        estimate = _Estimating(denoiser, label, self.seed, numbers, progress, len(self.times))
        found: dict[str, dict[str, list[np.ndarray]]] = {kind: {} for kind in kinds}
        for step, t in enumerate(self.times):
            start = time.perf_counter()
            x = np.concatenate([inputs[kind].x[images[kind], step] for kind in kinds])
            means = estimate(torch.from_numpy(x), t).cpu().split([len(images[kind]) for kind in kinds])
            seconds = (time.perf_counter() - start) / len(numbers)
            for kind, mean in zip(kinds, means, strict=True):
                values = inputs[kind].measures(images[kind], step, mean)
                values["seconds"] = np.full(len(mean), seconds)
                for key, each in values.items():
                    found[kind].setdefault(key, []).append(each)
        return {
            kind: {key: np.stack(values, 1) for key, values in measures.items()}
            for kind, measures in found.items()
        }

    def _batches(
        self, images: Sequence[T], stage: str, label_of: Callable[[T], int | None]
    ) -> Iterator[tuple[int | None, list[T], Progress]]:
        """Yield batches of images that share their label, each with the progress of its share of a stage."""
        done = 0
        for label in dict.fromkeys(map(label_of, images)):
            mine = [image for image in images if label_of(image) == label]
            for first in range(0, len(mine), self.batch_size):
                batch = mine[first : first + self.batch_size]
                end = done + len(batch)
                yield label, batch, part_of(self.progress, stage, done / len(images), end / len(images))
                done = end

    def _ddim(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        steps: int,
        label: int | None,
        numbers: Sequence[int],
        progress: Progress,
        visit: Visit | None = None,
    ) -> Tensor:
        """Draw images of one label; `visit` gets the noisy images and the posterior means of each step."""
        estimate = _Estimating(denoiser, label, self.seed, numbers, progress, steps - 1)

        def model(x: Tensor, t: float) -> Tensor:
            denoiser.check_course(x, t, estimate.done + 1)
            mean = estimate(x, t)
            if visit is not None:
                visit(x, mean)
            return denoiser.score_of(mean, x, t)

        images = ddim(model, noise.to(denoiser.device), steps, denoiser.noise)
        denoiser.check_course(images, 0.0, estimate.done + 1)
        return images


class _Estimating:
    """Posterior means of a batch at one time after another, with a cache for all times."""

    def __init__(
        self,
        denoiser: Denoiser,
        label: int | None,
        seed: int,
        numbers: Sequence[int],
        progress: Progress,
        steps: int,
    ) -> None:
        self._denoiser, self._label, self._seed, self._numbers = denoiser, label, seed, numbers
        self._progress, self._steps, self.done = progress, steps, 0
        self._cache: TrajectoryCache = {}

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the posterior means."""
        step = part_of(self._progress, "step", self.done / self._steps, (self.done + 1) / self._steps)
        mean = self._denoiser.posterior_mean(
            x,
            t,
            label=self._label,
            seed=self._seed,
            image_ids=self._numbers,
            progress=step,
            cache=self._cache,
        ).mean
        self.done += 1
        step("step", 1.0, 1.0)
        return mean


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
