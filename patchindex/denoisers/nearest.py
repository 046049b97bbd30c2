"""`NearestImage`: the training image nearest to the noisy image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patchindex.denoisers.base import Call
from patchindex.denoisers.from_images import TrainingDenoiser
from patchindex.denoisers.registry import register_denoiser
from patchindex.devices import to_float64
from patchindex.estimators import Estimate
from patchindex.exact.request import WORKING_MEMORY
from patchindex.images.by_label import TrainingImages, as_tensor, read_ahead, to_unit
from patchindex.runtime import Progress, no_progress, plain_state

__all__ = ["Nearest", "NearestImage", "find_nearest"]

SAMPLE = 64  # images whose mean is subtracted, which makes rounding errors smaller


@register_denoiser("nearest")
class NearestImage(TrainingDenoiser):
    """The training image nearest to the noisy image.

        mu = v_j,    j = argmin_n |x / a - v_n|,    a = sqrt(1 - beta)

    over all training images v_n (of the label). `mu` is the limit of the ideal score machine (IS) for a
    softmax without temperature. Among images at exactly the same distance, the image that comes first in the
    source is taken.

    Parameters
    ----------
    source, labels, noise, label, device, threads, memory
        As for `TrainingDenoiser`.

    Raises
    ------
    InputError
        When a setting is unknown or does not fit the images.

    Notes
    -----
    One float32 matrix product gives the distances to a block of images, with a bound of their rounding
    errors. Images that may be nearest within the bound are compared again, in float64.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> x = torch.from_numpy(images[7:8, None] / 127.5 - 1)
    >>> mean = NearestImage(images).posterior_mean(x, 0.05).mean
    >>> bool((mean - x).abs().max() < 1e-6)
    True
    """

    def _estimate(self, x: Tensor, beta: float, call: Call) -> Estimate:
        y = to_float64(x) / (1 - beta) ** 0.5
        found = find_nearest(self.training, y, call.label, memory=self._memory, progress=call.progress)
        one = torch.ones_like(y[:, 0], dtype=torch.float32)
        lo, hi = self.training.range_of(call.label)
        return Estimate(
            to_unit(found.images).permute(0, 3, 1, 2).contiguous(),
            stderr=0 * one,
            ess=one,
            captured_mass=one,
            patches_evaluated=one.numel() * (hi - lo),
            exact_pixels=one.numel(),
        )


class Nearest(NamedTuple):
    """The training images nearest to B images.

    Attributes
    ----------
    ids : Tensor, shape (B,), int64
        Numbers of the training images in the source.
    squared_distances : Tensor, shape (B,), float64
        In the units of images in [-1, 1].
    images : Tensor, shape (B, H, W, C), uint8
    """

    ids: Tensor
    squared_distances: Tensor
    images: Tensor


@plain_state()
def find_nearest(
    training: TrainingImages,
    y: Tensor,
    label: int | None = None,
    *,
    memory: int = WORKING_MEMORY,
    progress: Progress = no_progress,
) -> Nearest:
    """Return the training image nearest to each image, and the first in the source among equals.

    Parameters
    ----------
    training : TrainingImages
        N images of C channels, H x W.
    y : Tensor, shape (B, C, H, W), float64
        Images in the units of training images in [-1, 1]; values may lie outside.
    label : int, optional
        Compare with the images of this label only.
    memory : int
        Bytes for temporary arrays.
    progress : Progress
        Called with the number of training images that are done.

    Raises
    ------
    InputError
        When no image has the label.

    Examples
    --------
    >>> import numpy as np
    >>> training = TrainingImages(np.array([[[0, 255]], [[255, 255]], [[0, 255]]], np.uint8))
    >>> find_nearest(training, torch.tensor([[[[-2.0, 1.0]]]], dtype=torch.float64))[:2]
    (tensor([0]), tensor([1.], dtype=torch.float64))
    """
    lo, hi = training.range_of(label)
    queries = y.permute(0, 2, 3, 1).flatten(1).double()
    batch, numbers = queries.shape
    # In memory: a block as bytes and three times as floats, the bytes of the next block, and for each pair
    # of images the distance, its error and scratch arrays.
    step = max(1, memory // 2 // (14 * numbers + 24 * batch))
    pairs = max(1, memory // 2 // (32 * numbers))
    ids = as_tensor(training.ids_of_blocks(lo, hi), y.device)
    best = _Best(queries, pairs)
    done = 0
    with torch.no_grad(), read_ahead(training.blocks(lo, hi, step)) as blocks:
        for block in blocks:
            best.add(as_tensor(block, y.device).flatten(1), ids[done : done + len(block)])
            done += len(block)
            progress("nearest image", done, hi - lo)
    return Nearest(best.ids, best.distances, best.images.reshape(batch, *training.size, training.channels))


class _Best:
    """The nearest images so far."""

    def __init__(self, queries: Tensor, pairs: int) -> None:
        batch, numbers = queries.shape
        self._queries, self._pairs = queries, pairs
        self._origin: Tensor | None = None
        self.distances = torch.full((batch,), torch.inf, dtype=torch.float64, device=queries.device)
        self.ids = torch.full((batch,), -1, device=queries.device)
        self.images = torch.zeros((batch, numbers), dtype=torch.uint8, device=queries.device)

    def add(self, pixels: Tensor, ids: Tensor) -> None:
        """Compare the queries with images (n, H * W * C)."""
        values = to_unit(pixels)
        if self._origin is None:
            self._origin = values[:SAMPLE].mean(0)
            centred = self._queries - self._origin
            self._centred, self._norms = centred.float(), centred.square().sum(1)
        values -= self._origin
        norms = values.square().sum(1)
        # Squared distances, without the norm of the query, which is the same for all images. `error` bounds
        # their rounding: of the sums of products, and of the values after the origin is subtracted.
        distances = torch.addmm(norms[:, None], values, self._centred.T, alpha=-2).double()
        lengths = norms.double().sqrt()[:, None], self._norms.sqrt()
        numbers = values.shape[1]
        product = lengths[0] * (lengths[0] + 2 * lengths[1])
        error = 2.0**-24 * ((numbers + 8) * product + 16 * numbers**0.5 * (lengths[0] + lengths[1]))
        limit = torch.minimum((distances + error).amin(0), self.distances - self._norms)
        near = (distances - error <= limit * (1 + 1e-12) + 1e-9).nonzero()
        for image, query in (part.unbind(1) for part in near.split(self._pairs)):
            exact = to_unit(pixels[image], torch.float64).sub_(self._queries[query]).square_().sum(1)
            self._take(pixels[image], ids[image], query, exact)

    def _take(self, pixels: Tensor, ids: Tensor, query: Tensor, distances: Tensor) -> None:
        """Keep an image for each query: the nearest one, and the first in the source among equals."""
        order = torch.argsort(ids, stable=True)
        order = order[torch.argsort(distances[order], stable=True)]
        order = order[torch.argsort(query[order], stable=True)]
        first = torch.ones_like(query, dtype=torch.bool)
        first[1:] = query[order][1:] != query[order][:-1]
        chosen = order[first]
        rows, found = query[chosen], distances[chosen]
        closer = (found < self.distances[rows]) | (
            (found == self.distances[rows]) & (ids[chosen] < self.ids[rows])
        )
        rows, chosen = rows[closer], chosen[closer]
        self.distances[rows], self.ids[rows] = distances[chosen], ids[chosen]
        self.images[rows] = pixels[chosen]
