"""`ScoreRequest`: everything that estimators and exact engines need to know about noisy images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages
from patchindex.runtime import Progress, no_progress

__all__ = ["WORKING_MEMORY", "ScoreRequest", "TrajectoryCache"]

WORKING_MEMORY = 256 << 20  # bytes

TrajectoryCache = dict[int, Any]


@dataclass(frozen=True)
class ScoreRequest:
    """Noisy images of one noise level, and the training images to compare them with.

    Attributes
    ----------
    training : TrainingImages
        N images of the geometry's size.
    geometry : Geometry
        The machine and its locality scale.
    x : Tensor, shape (B, C, H, W)
        Noisy images, on the device that does the work.
    beta : float
        Noise variance, in (0, 1).
    label : int, optional
        Compare with the training images of this label only.
    pixels : Tensor of bool, shape (B, H, W), or sequence of B tensors of int64, optional
        The pixels whose posterior mean is wanted, all by default: a mask, or raster numbers `y * W + x` for
        each image.
    memory : int
        Bytes for temporary arrays.
    dtype : torch.dtype
        float32, or float64 for studies.
    engine : str, optional
        Engine of the exact scan: `"cpu"`, `"fused"` or `"offsets"`; by default the fastest one that can run
        (see `patchindex.exact.scan`). IS has one engine, whatever the name.
    progress : Progress
        Called with the name of a stage, the work done and all work.
    seed : int
        Seed of the estimators that draw random numbers.
    image_ids : sequence of B int
        Numbers of the noisy images, by default 0, 1, ... The random draws for an image depend on `seed` and
        on the number of the image.
    cache : dict, optional
        What earlier sampling steps found; the keys are numbers of images, as in `image_ids`. All steps of a
        trajectory share one cache; an estimator reads and writes the entries.
    """

    training: TrainingImages
    geometry: Geometry
    x: Tensor
    beta: float
    _: KW_ONLY
    label: int | None = None
    pixels: Tensor | Sequence[Tensor] | None = None
    memory: int = WORKING_MEMORY
    dtype: torch.dtype = torch.float32
    engine: str | None = None
    progress: Progress = no_progress
    seed: int = 0
    image_ids: Sequence[int] = ()
    cache: TrajectoryCache | None = None

    def __post_init__(self) -> None:
        if not len(self.image_ids):
            object.__setattr__(self, "image_ids", range(len(self.x)))

    @property
    def a(self) -> float:
        """Signal scale `sqrt(1 - beta)`."""
        return float((1 - self.beta) ** 0.5)

    @property
    def image_range(self) -> tuple[int, int]:
        """Range [lo, hi) of the training images with `label`, or of all if `label` is None."""
        return self.training.range_of(self.label)

    @property
    def most_patches(self) -> int:
        """Largest number of training patches that a pixel is compared with."""
        lo, hi = self.image_range
        return (hi - lo) * self.geometry.largest_class

    @cached_property
    def mask(self) -> Tensor | None:
        """The wanted pixels as a mask of bool, shape (B, H * W); None for all."""
        if self.pixels is None:
            return None
        if isinstance(self.pixels, Tensor):
            return self.pixels.flatten(1)
        mask = torch.zeros((len(self.x), self.x[0, 0].numel()), dtype=torch.bool, device=self.x.device)
        for row, numbers in zip(mask, self.pixels, strict=True):
            row[numbers] = True
        return mask

    def select(self, images: slice) -> ScoreRequest:
        """Return the request for some of the noisy images."""
        return replace(
            self,
            x=self.x[images],
            pixels=None if self.pixels is None else self.pixels[images],
            image_ids=self.image_ids[images],
        )
