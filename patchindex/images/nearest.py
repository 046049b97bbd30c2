"""The nearest training images of given images, also under cyclic shifts: exact, over all training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.images.by_label import TrainingImages, as_tensor, read_ahead, to_unit
from patchindex.runtime import Progress, no_progress, plain_state

__all__ = ["Nearest", "nearest_images", "shifts_within"]

WORK_BYTES = 256 << 20
SAMPLE = 64  # images whose mean is subtracted, which makes rounding errors smaller
COLUMNS = 4096  # numbers per matrix product, for the same reason
LARGEST = 1e12  # of a query: squares and their sums stay within float32
SUM_BITS = 61  # of the sums of rounded squares, in int64
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
        float64. At most 1e12.
    training : TrainingImages
    shifts : sequence of (dy, dx)
    kept : int
        Training images per image. The result has fewer if there are fewer training images (of the label),
        not counting one image that may be left out.
    label : int, optional
        Compare with the training images of this label only.
    leave_out : Tensor, shape (n,), int64, optional
        A training image, by its number in the source, that each image is not compared with: itself.
    memory : int
        Bytes for temporary arrays.

    Raises
    ------
    InputError
        When no training image has the label, none is left, or a value is not finite or larger than 1e12.

    Notes
    -----
    A cyclic shift moves pixels and changes no norm, so the squared distance from v, shifted by s, to x is
    `|x|^2 + |v|^2 - 2 <shift_(-s) x, v>`. Float32 matrix products of all shifted images and a block of
    training images give these distances, with a bound of their rounding errors. Pairs that may be among the
    nearest within the bound are compared again: the squares of their differences are rounded to a grid, 61
    bits below the largest sum, and added as integers. So equal distances are equal in any order of the
    pixels, and with any number of threads.

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
    if not images.abs().max() <= LARGEST:  # also NaN
        raise InputError("must be finite, and at most 1e12", parameter="images", remedy="scale the images")
    numbers = images[0].numel()
    kept = min(kept, hi - lo - (leave_out is not None))
    if kept < 1:
        raise InputError("there is one image", parameter="training", remedy="give at least two images")
    ids = as_tensor(training.ids_of_blocks(lo, hi), images.device)
    # Half of the memory is for the shifted images of a group, as they are and in float32. A quarter is for
    # the pixels of a block, three times as floats, and its distances; a quarter for pairs in float64.
    group = max(1, memory // 2 // (len(shifts) * numbers * (images.element_size() + 4)))
    step = max(1, memory // 4 // (14 * numbers + 24 * min(group, len(images)) * len(shifts)))
    pairs = max(1, memory // 4 // (40 * numbers))
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
        parts.append(Nearest((best.squares() / numbers).sqrt(), best.ids, moves[best.shifts]))
    return Nearest(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


class _Best:
    """The nearest training images so far of n images.

    `sums`, `ids` and `shifts`, of shape (n, kept), are squared distances as integers, numbers in the source
    and numbers of shifts. Without an image the sum is `NONE`.
    """

    NONE = torch.iinfo(torch.int64).max

    def __init__(
        self, x: Tensor, shifts: Sequence[tuple[int, int]], kept: int, own: Tensor | None, pairs: int
    ) -> None:
        pixels = x.permute(0, 2, 3, 1)  # in the order of the pixels of training images
        self._moved = x.new_empty((len(x), len(shifts), x[0].numel()))
        for number, (dy, dx) in enumerate(shifts):
            self._moved[:, number] = torch.roll(pixels, (-dy, -dx), (1, 2)).flatten(1)
        # A power of two, so that no sum of squares has more than `SUM_BITS` bits: differences are at most
        # 1 more than the largest value, and an error of float32 more.
        most = (pixels.flatten(1).abs().amax(1).double() + 1.001).square() * x[0].numel()
        self._grid = torch.exp2(SUM_BITS - torch.log2(most).ceil())
        self._own, self._pairs = own, pairs
        self._origin: Tensor | None = None
        self.sums = torch.full((len(x), kept), self.NONE, device=x.device)
        self.ids = torch.full_like(self.sums, -1)
        self.shifts = torch.full_like(self.sums, -1)

    def squares(self) -> Tensor:
        """Return squared distances, (n, kept) in float64; infinity without an image."""
        squares = self.sums.double() / self._grid[:, None]
        return squares.masked_fill_(self.sums == self.NONE, torch.inf)

    def _centre(self, origin: Tensor) -> Tensor:
        """Subtract the origin from the images, and keep their norms; return the origin."""
        rows = self._moved.flatten(0, 1)
        self._centred = torch.empty(rows.shape, device=rows.device)
        norms = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        for first in range(0, len(rows), self._pairs):
            centred = rows[first : first + self._pairs].double() - origin.double()
            norms[first : first + self._pairs] = centred.square().sum(1)
            self._centred[first : first + self._pairs] = centred
        norms = norms.reshape(self._moved.shape[:2])
        self._lengths, self._least = norms.amax(1).sqrt(), norms.amin(1)
        self._more = norms - self._least[:, None]
        return origin

    def add(self, pixels: Tensor, ids: Tensor) -> None:
        """Compare with training images (b, H * W * C)."""
        values = to_unit(pixels)
        if self._origin is None:
            self._origin = self._centre(values[:SAMPLE].mean(0))
        values -= self._origin
        # Squared distances less `_least`, which all training images and shifts have in common.
        found = self._more.float().flatten().repeat(len(values), 1)
        norms = torch.zeros_like(found[:, 0])
        for v, c in zip(values.split(COLUMNS, 1), self._centred.split(COLUMNS, 1), strict=True):
            found.addmm_(v, c.T, alpha=-2)
            norms += v.square().sum(1)
        found += norms[:, None]
        found = found.reshape(len(values), *self._moved.shape[:2])
        # A bound of the rounding errors: of the sums of products, each of at most `COLUMNS` numbers, and of
        # the values after the origin is subtracted.
        longest, numbers = norms.max().double().sqrt(), values.shape[1]
        sums = min(COLUMNS, numbers) + numbers // COLUMNS + 16
        product = longest * (longest + 2 * self._lengths) + self._more.amax(1)
        error = 2.0**-24 * (sums * product + 16 * numbers**0.5 * (longest + self._lengths))
        if self._own is not None:
            found[ids[:, None] == self._own] = torch.inf
        kept = self.sums.shape[1]
        limit = self.squares()[:, -1] - self._least
        if len(found) >= kept:
            nearest = found.amin(2).topk(kept, 0, largest=False).values[-1]
            limit = torch.minimum(limit, nearest + error)
        # The rounding of `_least`, of the grid, and of the limit to float32 must not make it smaller.
        limit += error + 1e-12 * self._least + numbers / self._grid
        limit += 2.0**-23 * limit.abs()
        near = (found <= limit.float()[:, None]) & (found < torch.inf)
        for image, query, shift in (part.unbind(1) for part in near.nonzero().split(self._pairs)):
            v = to_unit(pixels[image], self._moved.dtype).double()
            squares = v.sub_(self._moved[query, shift]).square_().mul_(self._grid[query, None])
            self._take(query, ids[image], shift, squares.round_().long().sum(1))

    def _take(self, query: Tensor, ids: Tensor, shift: Tensor, sums: Tensor) -> None:
        """Keep the nearest of these pairs and of the pairs so far, each training image once."""
        known = self.sums < self.NONE
        query = torch.cat([known.nonzero()[:, 0], query])
        ids, shift = torch.cat([self.ids[known], ids]), torch.cat([self.shifts[known], shift])
        sums = torch.cat([self.sums[known], sums])
        order = _order(query, ids, sums, shift)
        other = torch.ones_like(query, dtype=torch.bool)
        other[1:] = (query[order].diff() != 0) | (ids[order].diff() != 0)
        order = order[other]
        order = order[_order(query[order], sums[order], ids[order])]
        query = query[order]
        place = torch.arange(len(order), device=query.device) - torch.searchsorted(query, query)
        first = place < self.sums.shape[1]
        where, order = (query[first], place[first]), order[first]
        self.sums[where], self.ids[where], self.shifts[where] = sums[order], ids[order], shift[order]


def _order(*keys: Tensor) -> Tensor:
    """Return the order of rows by the first key, then by the second, and so on."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    return order
