"""`ScaleMachine`: the posterior means of one score machine at any locality scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from patchindex.devices import to_float64
from patchindex.estimators import Estimator, ScoreContext, make_estimator
from patchindex.exact import ScoreRequest, expected_seconds, scan
from patchindex.exact.request import WORKING_MEMORY
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.index import PatchIndex
from patchindex.runtime import Progress, no_progress
from patchindex.softmax import SoftmaxState

__all__ = ["Noisy", "ScaleMachine", "default_scales"]

DENSE = 0.6  # share of the image size up to which every odd scale is in the default grid
COARSE = 4  # distance of the larger scales


def default_scales(size: tuple[int, int]) -> tuple[int, ...]:
    """Return the default grid of locality scales for images of this size.

    All odd k from 3 to about .6 of the image, then every second odd k, and the largest k that fits.

    >>> default_scales((32, 32)), default_scales((28, 28))
    ((3, 5, 7, 9, 11, 13, 15, 17, 19, 23, 27, 31), (3, 5, 7, 9, 11, 13, 15, 17, 21, 25, 27))
    """
    largest = min(size) - 1 + min(size) % 2
    dense = [k for k in range(3, largest + 1, 2) if k <= DENSE * min(size) + 1] or [largest]
    return tuple(sorted({*dense, *range(dense[-1], largest + 1, COARSE), largest}))


@dataclass(frozen=True)
class Noisy:
    """Noisy images that share their noise variance and their label.

    Attributes
    ----------
    x : Tensor, shape (B, C, H, W), float32
    beta : float
        Noise variance.
    label : int or None
        Compare with the training images of this label.
    numbers : sequence of B int
        Numbers of the images, which seed random draws.
    pixels : list of B tensors of P raster numbers, or None
        The pixels to evaluate; None for all of them.
    """

    x: Tensor
    beta: float
    label: int | None
    numbers: Sequence[int]
    pixels: list[Tensor] | None = None

    def flat(self, images: Tensor) -> Tensor:
        """Return the evaluated pixels of images (B, C, H, W): float64 (B, P, C)."""
        rows = to_float64(images.to(self.x.device)).permute(0, 2, 3, 1).flatten(1, 2)
        if self.pixels is None:
            return rows
        return torch.stack([row[numbers] for row, numbers in zip(rows, self.pixels, strict=True)])

    def one(self, b: int) -> Noisy:
        """Return image b alone."""
        pixels = None if self.pixels is None else self.pixels[b : b + 1]
        return Noisy(self.x[b : b + 1], self.beta, self.label, self.numbers[b : b + 1], pixels)


@dataclass(frozen=True)
class ScaleMachine:
    """A score machine of a set of training images, without a locality schedule.

    Attributes
    ----------
    training : TrainingImages
    machine, train_windows : str
        As for `ScoreMachine`.
    index : PatchIndex, optional
        The index of the same images. Its scales are evaluated with `"auto"`.
    memory : int
        Bytes for temporary arrays.
    """

    training: TrainingImages
    machine: str
    train_windows: str = "valid"
    index: PatchIndex | None = None
    memory: int = WORKING_MEMORY

    def geometry(self, k: int) -> Geometry:
        """Return the geometry at a scale; InputError for a scale that does not fit."""
        return Geometry.of(self.machine, k, self.training.size, self.train_windows)

    def cost(self, k: int, pixels: int) -> float:
        """Return the expected seconds of a noisy image at a scale, on one thread."""
        return expected_seconds(self.geometry(k), self.training.channels, len(self.training), [pixels])

    @cached_property
    def _auto(self) -> Estimator | None:
        if self.index is None:
            return None
        return make_estimator("auto", ScoreContext(self.index, torch.device("cpu")))

    def state(self, noisy: Noisy, k: int, progress: Progress = no_progress) -> SoftmaxState:
        """Return the exact softmax of every evaluated pixel, shape (B, P)."""
        found = scan(self._request(noisy, k, progress))
        return found.reshape((len(noisy.x), -1))

    def mean(self, noisy: Noisy, k: int, progress: Progress = no_progress) -> tuple[Tensor, Tensor]:
        """Return posterior means, float64 (B, P, C), and effective sample sizes, (B, P)."""
        if self._auto is not None and self.index is not None and k in self.index.scales:
            # `auto` estimates all pixels, and its index is on the CPU.
            request = replace(self._request(noisy, k, progress), x=noisy.x.cpu(), pixels=None)
            estimate = self._auto(request)
            return noisy.flat(estimate.mean), noisy.flat(estimate.ess.unsqueeze(1)).squeeze(2)
        state = self.state(noisy, k, progress)
        return state.mean(), state.ess()

    def _request(self, noisy: Noisy, k: int, progress: Progress) -> ScoreRequest:
        return ScoreRequest(
            self.training,
            self.geometry(k),
            noisy.x,
            noisy.beta,
            label=noisy.label,
            pixels=noisy.pixels,
            memory=self.memory,
            progress=progress,
            image_ids=noisy.numbers,
        )
