"""The nearest training images of given images, also under cyclic shifts: exact, over all training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchindex.images.by_label import TrainingImages, as_tensor, read_ahead, to_unit
from patchindex.runtime import Progress, no_progress, plain_state

__all__ = ["Nearest", "nearest_images", "shifts_within"]

WORK_BYTES = 256 << 20
SAMPLE = 64  # images whose mean is subtracted, which makes rounding errors smaller
NO_SHIFT = ((0, 0),)


@dataclass(frozen=True)
class Nearest:
    """The training images and shifts nearest to each image, the nearest first.

    Attributes
    ----------
    distance : Tensor, shape (n, m), float64
        Root mean square difference per pixel and channel, in units of [-1, 1].
    image : Tensor, shape (n, m), int64
        Numbers of the training images in the source.
    shift : Tensor, shape (n, m, 2), int64
        Pixels that the training image moves down and to the right, cyclically.
    """

    distance: Tensor
    image: Tensor
    shift: Tensor


def shifts_within(most: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return all cyclic shifts (dy, dx) of at most `most` pixels along each axis, (0, 0) first.

    >>> shifts_within(1, (8, 8))[:4]
    [(0, 0), (0, -1), (0, 1), (-1, 0)]
    >>> len(shifts_within(100, (8, 8)))  # every shift once
    64
    """
    along = []
    for n in size:
        reach = range(-most, most + 1) if 2 * most + 1 < n else range(-((n - 1) // 2), n // 2 + 1)
        along.append(sorted(reach, key=lambda s: (s != 0, s)))
    return [(dy, dx) for dy in along[0] for dx in along[1]]


@plain_state()
def nearest_images(
    images: Tensor,
    training: TrainingImages,
    shifts: Sequence[tuple[int, int]] = NO_SHIFT,
    *,
    kept: int = 1,
    label: int | None = None,
    leave_out: Tensor | None = None,
    memory: int = WORK_BYTES,
    progress: Progress = no_progress,
) -> Nearest:
    """Return the training images, each under its best shift, nearest to each image.

    Among equal distances, the image that is first in the source comes first, and then the shift that is first
    in `shifts`.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W), float32 or float64
        In the units of training images in [-1, 1]; values may lie outside. Training images are computed from
        uint8 in the same type, by `to_unit`, so that the distance of a copy is 0. The device must have
        float64.
    training : TrainingImages
    shifts : sequence of (dy, dx)
    kept : int
        Training images per image. There are fewer in the result if there are fewer training images.
    label : int, optional
        Compare with the training images of this label only.
    leave_out : Tensor, shape (n,), int64, optional
        A training image, by its number in the source, that each image is not compared with: itself.
    memory : int
        Bytes for temporary arrays.

    Raises
    ------
    InputError
        When no training image has the label.

    Notes
    -----
    A cyclic shift moves pixels and changes no norm, so the squared distance from v, shifted by s, to x is
    `|x|^2 + |v|^2 - 2 <shift_(-s) x, v>`. One float32 matrix product of all shifted images and a block of
    training images gives these distances, with a bound of their rounding errors. Pairs that may be among the
    nearest within the bound are compared again, in float64.

    Examples
    --------
    >>> import numpy as np
    >>> training = TrainingImages(np.array([[[0, 255]], [[255, 255]], [[0, 255]]], np.uint8))
    >>> found = nearest_images(torch.tensor([[[[-2.0, 1.0]]]]), training, kept=2)
    >>> found.image, found.distance * 2**0.5
    (tensor([[0, 2]]), tensor([[1., 1.]], dtype=torch.float64))
    >>> nearest_images(torch.tensor([[[[1.0, -2.0]]]]), training, [(0, 0), (0, 1)]).shift
    tensor([[[0, 1]]])
    """
    lo, hi = training.range_of(label)
    numbers = images[0].numel()
    kept = min(kept, hi - lo - (leave_out is not None))
    ids = as_tensor(training.ids_of_blocks(lo, hi), images.device)
    # A quarter of the memory is for the shifted images of a group, twice, and again in float32, twice; a
    # quarter for the pixels of a block, three times as floats, and its distances.
    group = max(1, memory // 4 // (len(shifts) * numbers * (2 * images.element_size() + 8)))
    step = max(1, memory // 4 // (14 * numbers + 24 * min(group, len(images)) * len(shifts)))
    pairs = max(1, memory // 4 // (32 * numbers))
    parts = []
    for first in range(0, len(images), group):
        x = images[first : first + group]
        own = None if leave_out is None else leave_out[first : first + group].to(images.device)
        best, done = _Best(x, shifts, kept, own, pairs), 0
        with torch.no_grad(), read_ahead(training.blocks(lo, hi, step)) as blocks:
            for block in blocks:
                best.add(as_tensor(block, x.device).flatten(1), ids[done : done + len(block)])
                done += len(block)
                progress("nearest images", first * (hi - lo) + len(x) * done, len(images) * (hi - lo))
        moves = torch.tensor(shifts, device=x.device)
        parts.append(Nearest((best.squares / numbers).sqrt(), best.ids, moves[best.shifts]))
    return Nearest(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


class _Best:
    """The nearest training images so far of n images.

    `squares`, `ids` and `shifts`, of shape (n, kept), are squared distances, numbers in the source and
    numbers of shifts. Without an image the distance is infinite.
    """

    def __init__(
        self, x: Tensor, shifts: Sequence[tuple[int, int]], kept: int, own: Tensor | None, pairs: int
    ) -> None:
        moved = torch.stack([torch.roll(x, (-dy, -dx), (2, 3)) for dy, dx in shifts], 1)
        self._moved = moved.permute(0, 1, 3, 4, 2).flatten(2)  # in the order of the pixels of training images
        self._own, self._pairs = own, pairs
        self._origin: Tensor | None = None
        self.squares = torch.full((len(x), kept), torch.inf, dtype=torch.float64, device=x.device)
        self.ids = torch.full((len(x), kept), -1, device=x.device)
        self.shifts = torch.full_like(self.ids, -1)

    def add(self, pixels: Tensor, ids: Tensor) -> None:
        """Compare with training images (b, H * W * C)."""
        values = to_unit(pixels)
        if self._origin is None:
            self._origin = values[:SAMPLE].mean(0)
            centred = self._moved - self._origin
            norms = torch.stack([each.double().square().sum(1) for each in centred])
            self._centred, self._lengths = centred.flatten(0, 1).float(), norms.amax(1).sqrt()
            self._least = norms.amin(1)
            self._more = (norms - self._least[:, None]).float().flatten()
        values -= self._origin
        norms = values.square().sum(1)
        # Squared distances less `_least`, which all training images and shifts have in common. `error` bounds
        # their rounding: of the sums of products, and of the values after the origin is subtracted.
        found = torch.addmm(norms[:, None], values, self._centred.T, alpha=-2).add_(self._more)
        found = found.reshape(len(values), *self._moved.shape[:2])
        longest, numbers = norms.max().double().sqrt(), values.shape[1]
        product = longest * (longest + 2 * self._lengths) + self._more.reshape(found.shape[1:]).amax(1)
        error = 2.0**-24 * ((numbers + 8) * product + 16 * numbers**0.5 * (longest + self._lengths))
        if self._own is not None:
            found[ids[:, None] == self._own] = torch.inf
        limit = self.squares[:, -1] - self._least
        if len(found) >= self.squares.shape[1]:
            nearest = found.amin(2).topk(self.squares.shape[1], 0, largest=False).values[-1]
            limit = torch.minimum(limit, nearest + error)
        limit += error + 1e-12 * self._least + 1e-9
        limit += 2.0**-23 * limit.abs()  # rounding to float32 must not make it smaller
        near = (found <= limit.float()[:, None]) & (found < torch.inf)
        for image, query, shift in (part.unbind(1) for part in near.nonzero().split(self._pairs)):
            v = to_unit(pixels[image], self._moved.dtype).double()
            self._take(query, ids[image], shift, (v - self._moved[query, shift]).square_().sum(1))

    def _take(self, query: Tensor, ids: Tensor, shift: Tensor, squares: Tensor) -> None:
        """Keep the nearest of these pairs and of the pairs so far, each training image once."""
        known = self.squares.isfinite()
        query = torch.cat([known.nonzero()[:, 0], query])
        ids, shift = torch.cat([self.ids[known], ids]), torch.cat([self.shifts[known], shift])
        squares = torch.cat([self.squares[known], squares])
        order = _order(query, ids, squares, shift)
        other = torch.ones_like(query, dtype=torch.bool)
        other[1:] = (query[order].diff() != 0) | (ids[order].diff() != 0)
        order = order[other]
        order = order[_order(query[order], squares[order], ids[order])]
        query = query[order]
        place = torch.arange(len(order), device=query.device) - torch.searchsorted(query, query)
        first = place < self.squares.shape[1]
        where, order = (query[first], place[first]), order[first]
        self.squares[where], self.ids[where], self.shifts[where] = squares[order], ids[order], shift[order]


def _order(*keys: Tensor) -> Tensor:
    """Return the order of rows by the first key, then by the second, and so on."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    return order
