"""The heaviest patches of pixels, with their weights in the softmax over all patches: exact.

    weight_j = exp(logit_j) / sum_i exp(logit_i)      i: every training patch of the pixel's class

One pass over the training images compares the windows of the pixels with blocks of patches, class by class,
in float32 matrix products. The `top + SPARE` largest logits of each pixel are computed again in float64: at
low noise float32 rounds logits of some thousands by 1e-3. All other logits are summed as they are. The
products are on the device of the noisy images, and the heaviest patches so far on its `float64_device`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from patchindex.devices import float64_device, to_float64
from patchindex.exact.request import ScoreRequest
from patchindex.geometry import windows
from patchindex.images.by_label import as_tensor, to_unit
from patchindex.images.on_device import blocks_on, in_root, resident
from patchindex.kernels.known_patches import KnownPatches
from patchindex.runtime import Progress, part_of, plain_state
from patchindex.softmax import SoftmaxState

__all__ = ["HeaviestPatches", "heaviest", "largest_first", "wanted_pixels"]

STAGE = "heaviest patches"
SAMPLE = 64  # images whose mean colour is subtracted: sums of smaller values have smaller rounding errors
SPARE = 24  # patches beyond `top` whose logits are computed in float64
IMAGES = 64  # of a tile: fewer cost more calls than they save memory
COLUMNS, LOGITS = 4096, 1 << 18  # patches and logits at a time, for the processor's cache
NEGLIGIBLE = 60.0  # nats below the largest logit: 1e15 of these patches would weigh less than 1e-10


@dataclass(frozen=True)
class HeaviestPatches:
    """The heaviest patches of M pixels, the heaviest first.

    Attributes
    ----------
    image : Tensor, shape (M, top), int64
        Training image of each patch, in the order of `TrainingImages`; -1 where there is no patch.
    place : Tensor, shape (M, top), int64
        Raster number `y * W + x` of the centre of the patch in its image; -1 where there is no patch.
    logit : Tensor, shape (M, top), float64
        `-|window - a patch|^2 / (2 beta)`; minus infinity where there is no patch.
    weight : Tensor, shape (M, top), float64
        Weight in the softmax over all patches; 0 where there is no patch.
    rest : Tensor, shape (M,), float64
        Weight of all other patches.
    ess, entropy : Tensor, shape (M,), float64
        Effective sample size `1 / sum w^2` and entropy `-sum w log w` in nats, over all patches; NaN where
        the method does not give the number.
    captured_mass : Tensor, shape (M,), float64
        Share of the softmax weights that the evaluated patches hold: 1 if the sum is over all patches.
    relative_error : Tensor, shape (M,), float64
        Standard error of the sum of all weights, divided by the sum: 0 for an exact sum, NaN if unknown.
    method : str
        `"exact"`: every patch was compared. `"near field"` and `"topk"`: the patches were retrieved from the
        index, and the sum of all weights was estimated.
    """

    image: Tensor
    place: Tensor
    logit: Tensor
    weight: Tensor
    rest: Tensor
    ess: Tensor
    entropy: Tensor
    captured_mass: Tensor
    relative_error: Tensor
    method: str

    def __getitem__(self, rows: Tensor) -> HeaviestPatches:
        """Return the patches of some pixels."""
        fields = {name: value[rows] for name, value in vars(self).items() if name != "method"}
        return HeaviestPatches(**fields, method=self.method)

    def padded(self, top: int) -> HeaviestPatches:
        """Return the same patches in `top` columns, the last of which hold no patch."""
        nothing: dict[str, float] = {"image": -1, "place": -1, "logit": -torch.inf, "weight": 0}
        more = (0, top - self.image.shape[1])
        wider: dict[str, Any] = {name: pad(getattr(self, name), more, value=v) for name, v in nothing.items()}
        return replace(self, **wider)

    @classmethod
    def cat(cls, parts: Sequence[HeaviestPatches]) -> HeaviestPatches:
        """Join the pixels of several results of one method."""
        names = [name for name in vars(parts[0]) if name != "method"]
        fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**fields, method=parts[0].method)


def wanted_pixels(request: ScoreRequest) -> tuple[Tensor, Tensor]:
    """Return image and raster number of the wanted pixels, image after image: two of int64, shape (M,)."""
    batch, area, device = len(request.x), request.x[0, 0].numel(), request.x.device
    pixels = request.pixels
    if pixels is None:
        lists = [torch.arange(area, device=device)] * batch
    elif isinstance(pixels, Tensor):
        lists = [row.nonzero()[:, 0] for row in pixels.flatten(1)]
    else:
        lists = [torch.as_tensor(numbers, dtype=torch.int64, device=device) for numbers in pixels]
    image = torch.cat([torch.full_like(numbers, i) for i, numbers in enumerate(lists)])
    return image, torch.cat(lists)


@plain_state()
def heaviest(request: ScoreRequest, top: int) -> HeaviestPatches:
    """Return the `top` heaviest patches of the wanted pixels of a request, in the order of `wanted_pixels`.

    Among patches of equal weight, the patches that come first in the training images are taken. The time is
    that of a matrix product of all windows and all patches.

    Parameters
    ----------
    request : ScoreRequest
        Noisy images (B, C, H, W); `pixels` are the M wanted pixels, all B * H * W by default.
    top : int
        Patches per pixel, at least 1.

    Returns
    -------
    HeaviestPatches
        Of M pixels, on the `float64_device` of x.

    Raises
    ------
    InputError
        When no training image has the label of the request.

    Examples
    --------
    >>> from patchindex.geometry import Geometry
    >>> from patchindex.images.by_label import TrainingImages
    >>> training = TrainingImages(np.arange(6 * 25, dtype=np.uint8).reshape(6, 5, 5))
    >>> x = training.source.floats(4)
    >>> found = heaviest(ScoreRequest(training, Geometry.of("LS", 3, (5, 5)), x, 1e-3), top=2)
    >>> found.image.shape, found.image[:, 0].unique().tolist(), float(found.weight[0, 0]) > 0.99
    (torch.Size([25, 2]), [4], True)
    """
    image, place = wanted_pixels(request)
    if request.geometry.machine == "IS":  # all pixels of an image share their softmax
        images, rows = image.unique(return_inverse=True)
        found = _in_groups(request, images, torch.zeros_like(images), top)
        found = found[rows.to(found.image.device)]
        own = torch.where(found.image >= 0, place[:, None].to(found.image.device), -1)
        return HeaviestPatches(**{**vars(found), "place": own})
    return _in_groups(request, image, place, top)


def _in_groups(request: ScoreRequest, image: Tensor, place: Tensor, top: int) -> HeaviestPatches:
    """Search for as many pixels at a time as half of the memory holds."""
    kept, channels = top + SPARE, request.x.shape[1]
    numbers = channels * min(request.geometry.k**2, request.x[0].numel())
    group = max(1, request.memory // 2 // (3 * 24 * kept + 24 * numbers))
    parts = []
    with torch.no_grad():
        for first in range(0, len(image), group):
            last = min(first + group, len(image))
            progress = part_of(request.progress, STAGE, first / len(image), last / len(image))
            search = _Search(request, image[first:last], place[first:last], kept)
            search.run(progress)
            parts.append(search.found(top))
    return HeaviestPatches.cat(parts)


class _Search:
    """A search for the heaviest patches of some pixels: one row per pixel.

    Logits lack the term `-|window|^2 / (2 beta)` of the row until the end. Patches are numbered by training
    image and place of the centre, `image * H * W + place`.
    """

    def __init__(self, request: ScoreRequest, image: Tensor, place: Tensor, kept: int) -> None:
        self._request, self._kept = request, kept
        self._a, self._beta, geometry = request.a, request.beta, request.geometry
        x, device = request.x, request.x.device
        self._sums = sums = float64_device(device)
        width, channels = geometry.size[1], x.shape[1]
        lo, hi = request.image_range
        sample = as_tensor(request.training.read(lo, min(lo + SAMPLE, hi)), device)
        grey = to_unit(sample).mean((0, 1, 2))
        whole = geometry.machine == "IS"
        if whole:
            windows_ = x[image].flatten(1)
        else:
            windows_ = windows(x, geometry, query=True)[image, :, place // width, place % width].flatten(1)
        self._grey = grey.repeat_interleave(windows_.shape[1] // channels)
        self._windows = to_float64(windows_)
        centred = self._windows - self._a * to_float64(self._grey)
        self._norms = centred.square().sum(1) / (2 * self._beta)
        self._queries = (centred * (self._a / self._beta)).to(device, request.dtype)
        rows = len(image)
        self._state = SoftmaxState.empty((rows,), 1, device)
        # Entropies are sums of weight times logit: logits near zero keep their rounding errors small.
        self._reference = torch.zeros(rows, dtype=request.dtype, device=device)
        self._logit = torch.full((rows, kept), -torch.inf, dtype=request.dtype, device=sums)
        self._precise = torch.full((rows, kept), -torch.inf, dtype=torch.float64, device=sums)
        self._patch = torch.full((rows, kept), -1, device=sums)
        self._count = torch.full((rows,), hi - lo, device=sums)
        self._classes: list[tuple[Tensor, Tensor]] = []
        if whole:
            self._classes = [(torch.arange(rows, device=device), torch.zeros(1, dtype=torch.int64))]
            return
        of_row = torch.from_numpy(geometry.query_classes.reshape(-1)).to(device)[place]
        members = torch.from_numpy(geometry.train_classes).to(device)
        for number in of_row.unique():
            mine = (of_row == number).nonzero()[:, 0]
            self._classes.append((mine, (members == number).nonzero()[:, 0]))
            self._count[mine.to(sums)] *= len(self._classes[-1][1])

    def run(self, progress: Progress) -> None:
        """Compare the pixels with all training images of the request."""
        request, geometry, device = self._request, self._request.geometry, self._request.x.device
        training, (lo, hi) = request.training, request.image_range
        (height, width), channels = geometry.size, request.x.shape[1]
        members = max(len(members) for _, members in self._classes)
        # In memory: an image as floats with its padding, and the patches of a class three times.
        padded = channels * (height + geometry.k) * (width + geometry.k)
        an_image = 4 * (padded + 3 * members * self._queries.shape[1])
        step = max(1, min(max(IMAGES, COLUMNS // members), request.memory // 4 // an_image))
        if resident(in_root(training, slice(lo, hi))[0], device) is None:
            numbers = training.numbers_of(training.ids_of_blocks(lo, hi))
        else:  # the copy on the device is in label order
            numbers = np.arange(lo, hi)
        done = 0
        with blocks_on(training, device, lo, hi, 8 * step, multiple=step) as blocks:
            for block in blocks:
                for tile in block.permute(0, 3, 1, 2).split(step):
                    ids = torch.from_numpy(numbers[done : done + len(tile)]).to(device)
                    self._add(to_unit(tile), ids)
                    done += len(tile)
                    progress(STAGE, done, hi - lo)

    def _add(self, tile: Tensor, ids: Tensor) -> None:
        """Compare all rows with the patches of images (n, C, H, W), whose numbers are `ids`."""
        geometry = self._request.geometry
        if geometry.machine == "IS":
            rows, _ = self._classes[0]
            self._compare(rows, tile.flatten(1), ids * tile[0, 0].numel())
            return
        patches = windows(tile, geometry, query=False)
        below, right = geometry.y.train_positions[0], geometry.x.train_positions[0]
        columns, (height, width) = len(geometry.x.train_positions), geometry.size
        for rows, members in self._classes:
            most = max(1, self._request.memory // 4 // (12 * len(tile) * self._queries.shape[1]))
            for some in members.split(most):
                y, x = some // columns, some % columns
                mine = patches[:, :, y, x].transpose(1, 2).flatten(0, 1).flatten(1)
                place = (y + below) * width + x + right
                self._compare(rows, mine, (ids[:, None] * height * width + place).flatten())

    def _compare(self, rows: Tensor, patches: Tensor, numbers: Tensor) -> None:
        """Compare rows with patches (n, D) in [-1, 1]."""
        for some, ids in zip(patches.split(COLUMNS), numbers.split(COLUMNS), strict=True):
            centred = (some - self._grey).to(self._queries.dtype)
            norms = centred.square().sum(1) * (-0.5 * self._a**2 / self._beta)
            for mine in rows.split(max(1, LOGITS // len(some))):
                logits = torch.addmm(norms, self._queries[mine], centred.T)
                best = logits.amax(1)
                self._sum(mine, logits, best)
                self._keep(mine, logits, best, some, ids)

    def _sum(self, rows: Tensor, logits: Tensor, best: Tensor) -> None:
        """Add logits to the softmax of each row."""
        known = self._state.max_logit[rows.to(self._sums)]
        first = (known == -torch.inf).to(rows.device)
        self._reference[rows[first]] = best[first]
        near = (to_float64(best) > known - NEGLIGIBLE).nonzero()[:, 0].to(rows.device)
        if len(near):
            rows, logits = rows[near], logits[near]
            values = (logits - self._reference[rows, None]).unsqueeze(-1)
            self._state.merge(SoftmaxState.of(logits, values), (rows.to(self._sums),))

    def _keep(self, rows: Tensor, logits: Tensor, best: Tensor, patches: Tensor, numbers: Tensor) -> None:
        """Keep the largest logits of each row, with their float64 values."""
        rows, numbers = rows.to(self._sums), numbers.to(self._sums)
        bar = self._logit[rows, -1]
        better = (best.to(self._sums) > bar).nonzero()[:, 0]
        if not len(better):
            return
        rows, logits, bar = rows[better], logits[better.to(logits.device)].to(self._sums), bar[better]
        most = min(self._kept, logits.shape[1])
        if bool((bar == -torch.inf).any()):
            # Few rows have all of their places taken by a block: the block's own largest logits are enough.
            least = logits.topk(most).values[:, -1]
            bar = torch.maximum(bar, torch.nextafter(least, torch.full_like(least, -torch.inf)))
        row, column = (logits > bar[:, None]).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(rows))
        at = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        shape = (len(rows), int(counts.max()))
        offered = torch.full(shape, -torch.inf, dtype=logits.dtype, device=row.device)
        columns = torch.zeros(shape, dtype=torch.int64, device=row.device)
        offered[row, at], columns[row, at] = logits[row, column], column
        # A stable sort keeps the first of equal logits.
        joined, order = torch.cat([self._logit[rows], offered], 1).sort(dim=1, descending=True, stable=True)
        joined, order = joined[:, : self._kept], order[:, : self._kept]
        new = (order >= self._kept) & (joined > -torch.inf)
        kept = order.clamp_max(self._kept - 1)
        column = columns.gather(1, (order - self._kept).clamp(0, shape[1] - 1))
        patch = torch.where(new, numbers[column], self._patch[rows].gather(1, kept))
        precise = self._precise[rows].gather(1, kept)
        row, place = new.nonzero(as_tuple=True)
        precise[row, place] = self._logits(rows[row], patches, column[row, place])
        empty = joined == -torch.inf
        self._logit[rows], self._patch[rows] = joined, patch.masked_fill(empty, -1)
        self._precise[rows] = precise.masked_fill(empty, -torch.inf)

    def _logits(self, rows: Tensor, patches: Tensor, columns: Tensor) -> Tensor:
        """Return the logits of pairs of a row and a patch in float64, with all terms."""
        step = max(1, self._request.memory // 8 // (32 * patches.shape[1]))
        parts = [torch.empty(0, dtype=torch.float64, device=self._sums)]
        for some, column in zip(rows.split(step), columns.split(step), strict=True):
            # Values are multiples of 1/255 of the range, also the zeros of padding: undo their rounding.
            exact = to_float64(patches[column.to(patches.device)])
            exact = ((exact + 1) * 255).round_().div_(255).sub_(1)
            parts.append((self._windows[some] - self._a * exact).square_().sum(1) / (-2 * self._beta))
        return torch.cat(parts)

    def found(self, top: int) -> HeaviestPatches:
        """Return the result: float64 logits in place of the float32 logits that were kept."""
        state, reference = self._state, to_float64(self._reference)
        largest = state.max_logit
        rough = torch.exp(self._logit.double() - largest[:, None])
        offset = self._logit.double() - reference[:, None]
        precise = self._precise + self._norms[:, None]
        weight = torch.exp(precise - largest[:, None])
        moved = precise - reference[:, None]
        complete = self._count <= self._kept
        rest = (state.weight - rough.sum(1)).clamp_min(0).masked_fill(complete, 0)
        square = (state.weight_sq - rough.square().sum(1)).clamp_min(0).masked_fill(complete, 0)
        product = state.centre[:, 0] - _product(rough, offset)
        product = product.masked_fill(complete, 0) + _product(weight, moved)
        total = rest + weight.sum(1)
        ess = total.square() / (square + weight.square().sum(1))
        entropy = total.log() + largest - reference - product / total
        weight, order = (weight / total[:, None]).sort(dim=1, descending=True, stable=True)
        patch = self._patch.gather(1, order)[:, :top]
        area = self._request.x[0, 0].numel()
        one = torch.ones_like(rest)
        return HeaviestPatches(
            image=torch.where(patch >= 0, patch // area, -1),
            place=torch.where(patch >= 0, patch % area, -1),
            logit=self._precise.gather(1, order)[:, :top],
            weight=weight[:, :top],
            rest=rest / total + weight[:, top:].sum(1),
            ess=ess.clamp_min(1),
            entropy=entropy.clamp_min(0),
            captured_mass=one,
            relative_error=0 * one,
            method="exact",
        )


def largest_first(members: KnownPatches, total: Tensor, top: int) -> HeaviestPatches:
    """Return the heaviest of the patches that pixels are known to be compared with.

    `members.pixel` are rows of `total` (rows,), the logarithm of the sum of all weights. The result has `top`
    columns, or fewer where every row has fewer members. Effective sample size and captured mass, which the
    members do not tell, are NaN.
    """
    # The heaviest first; among equals, the first in the images.
    order = np.lexsort((members.place, members.image, -members.logit, members.pixel))
    row, image, place, logit = (torch.from_numpy(array[order]) for array in members)
    row = row.long()
    counts = torch.bincount(row, minlength=len(total))
    rank = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    named = rank < top
    row, rank = row[named], rank[named]
    most = int(counts.max()) if len(counts) else 0
    images = torch.full((len(total), min(top, most)), -1)
    places, logits = images.clone(), torch.full(images.shape, -torch.inf, dtype=torch.float64)
    images[row, rank], places[row, rank] = image[named].long(), place[named].long()
    logits[row, rank] = logit[named].double()
    # Sums of float32 weights are rounded: the named patches hold the whole sum at most.
    weights = (logits - torch.maximum(total, logits.logsumexp(1))[:, None]).exp()
    unknown = torch.full_like(total, torch.nan)
    rest = (1 - weights.sum(1)).clamp_min(0)
    return HeaviestPatches(images, places, logits, weights, rest, *(unknown,) * 4, method="near field")


def _product(weight: Tensor, logit: Tensor) -> Tensor:
    """Return the sum of weight times logit, without places that hold no patch."""
    return torch.where(weight > 0, weight * logit, 0.0).sum(1)
