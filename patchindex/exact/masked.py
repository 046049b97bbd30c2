"""The exact scan under masks: every entry of an image compares its own entries of whole images.

    logit[m, n] = -sum_{j in mask m} (y_j - v_nj)^2 / (2 sigma^2)

for entry m (a pixel and a channel) of a noisy image y and training image n. There is one softmax over all
images for each entry. On a CPU, threads run `kernels/masked.py` on tiles of images. Elsewhere, and in
float64, a matrix product of the squared differences and the masks gives the logits.

Entries are in the order (H, W, C) of stored images.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import torch
from torch import Tensor

from patchindex.devices import to_float64
from patchindex.exact.frame import NEGLIGIBLE
from patchindex.exact.request import WORKING_MEMORY
from patchindex.images.by_label import TrainingImages, as_tensor, read_ahead, to_unit
from patchindex.kernels import masked as kernel
from patchindex.kernels.scan import NOTHING_YET, Sums, Tile
from patchindex.kernels.simd import BLOCK, LANES, aligned
from patchindex.kernels.totals import flush, merge
from patchindex.runtime import Progress, full_precision, no_progress, part_of
from patchindex.softmax import SoftmaxState

__all__ = ["MaskedRequest", "list_masks", "scan"]

STAGE = "exact scan"
TILES = 8  # of a task: enough to hide the cost of adding its sums to the totals

# Subtracting a term leaves its rounding error, at most 4 LARGEST_SCALE 2^-24 in units of log 2. With smaller
# noise every mask starts from zero.
LARGEST_SCALE = 1000.0


@dataclass(frozen=True)
class MaskedRequest:
    """Noisy images of one noise level, and the masks under which to compare them with training images.

    Attributes
    ----------
    training : TrainingImages
    label : int or None
        Compare with the images of this label only.
    y : Tensor, shape (B, C, H, W)
        Noisy images over their signal scale, `x_t / sqrt(1 - beta)`.
    sigma2 : float
        Noise variance of y, `beta / (1 - beta)`.
    masks : Masks or Tensor of bool, shape (D, D)
        The entries of row m are compared for entry m; `list_masks` makes the lists that the CPU needs.
    memory : int
        Bytes for temporary arrays, besides the masks.
    progress : Progress
        Called with the number of images that are done.
    dtype : torch.dtype
        float32, or float64 for masks of bool.
    """

    training: TrainingImages
    label: int | None
    y: Tensor
    sigma2: float
    masks: kernel.Masks | Tensor
    memory: int = WORKING_MEMORY
    progress: Progress = no_progress
    dtype: torch.dtype = torch.float32


def list_masks(mask: Tensor, shape: tuple[int, int, int], sigma2: float) -> kernel.Masks:
    """Return masks as lists for the CPU.

    Each mask is the change of an earlier mask, of the pixel to the left, the pixel above or the channel
    before, or a list of its own, whichever is shortest.

    Parameters
    ----------
    mask : Tensor of bool, shape (D, D)
    shape : tuple of int
        Channels, height and width.
    sigma2 : float
        Noise variance of the images that the masks are for.
    """
    channels, _, width = shape
    entries = torch.arange(len(mask))
    best, back = mask.sum(1), torch.zeros_like(entries)
    if 1 / (2 * sigma2 * math.log(2)) <= LARGEST_SCALE:
        for step in {1, channels, width * channels}:
            changes = torch.full_like(best, len(mask) + 1)
            changes[step:] = (mask[step:] ^ mask[:-step]).sum(1)
            if step == 1:
                changes[::channels] = len(mask) + 1 if channels > 1 else changes[::channels]
            back[changes < best] = step
            best = torch.minimum(best, changes)
    before = torch.where((back > 0).unsqueeze(1), mask[entries - back], False)
    enter, leave = (mask & ~before).nonzero(), (before & ~mask).nonzero()
    lengths = torch.stack([torch.bincount(part[:, 0], minlength=len(mask)) for part in (enter, leave)], 1)
    # An entry's additions, then its subtractions.
    order = torch.cat([2 * enter[:, 0], 2 * leave[:, 0] + 1]).argsort(stable=True)
    ends = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 1))
    ends[-1] = ends[-2]
    indices = torch.cat([enter[:, 1], leave[:, 1]])[order]
    return kernel.Masks(
        back.numpy(), ends.reshape(-1, 2).numpy(), indices.int().numpy(), width * channels + 1
    )


def scan(request: MaskedRequest) -> SoftmaxState:
    """Compare all entries of the noisy images with all training images of the label.

    Returns
    -------
    SoftmaxState
        Of shape (B, D) with one channel: the mean of an entry is the posterior mean of its value. The logits
        of an entry lack a term that is the same for all images.
    """
    lo, hi = request.training.range_of(request.label)
    threads = torch.get_num_threads()
    flat = request.y.permute(0, 2, 3, 1).flatten(1)
    # Half of the memory is for the noisy images of a group, with their states and the sums of each thread,
    # and half for the scan.
    group = max(1, request.memory // 2 // (flat.shape[1] * 8 * (24 + 4 * threads)))
    states = []
    for first in range(0, len(flat), group):
        y = flat[first : first + group]
        progress = part_of(request.progress, STAGE, first / len(flat), (first + len(y)) / len(flat))
        part = _Part(request, y, lo, hi, request.memory // 2, progress)
        with full_precision(), torch.no_grad():
            if isinstance(request.masks, Tensor):
                states.append(_multiply(part, request.masks))
            else:
                states.append(_run(part, request.masks, threads))
    return SoftmaxState.cat(states)


@dataclass(frozen=True)
class _Part:
    """Some noisy images of a request, flat (b, D)."""

    request: MaskedRequest
    y: Tensor
    lo: int
    hi: int
    memory: int
    progress: Progress
    # (y - v)^2 = u (u + 2 r) + r^2 with y = near + r and u = near - v. The sum of r^2 is the same for all
    # images. It is left out, because it can be so large that its rounding error matters.
    near: Tensor = field(init=False)
    beyond: Tensor = field(init=False)  # 2 r

    def __post_init__(self) -> None:
        y = to_float64(self.y)
        near = y.clamp(-1, 1)
        object.__setattr__(self, "near", near)
        object.__setattr__(self, "beyond", 2 * (y - near))


def _multiply(part: _Part, masks: Tensor) -> SoftmaxState:
    """Scan by matrix products, in the dtype and on the device of the request."""
    request, dtype, device = part.request, part.request.dtype, part.y.device
    masks, near, beyond = (tensor.to(device, dtype) for tensor in (masks, part.near, part.beyond))
    batch, size = near.shape
    # An image takes its bytes twice, and floats: values, differences, logits, weights and three temporaries.
    step = max(1, min(512, part.memory // (size * (2 + 7 * dtype.itemsize))))
    state, done = SoftmaxState.empty((batch, size), 1, device), 0
    with read_ahead(request.training.blocks(part.lo, part.hi, step)) as blocks:
        for block in blocks:
            values = to_unit(as_tensor(block, device).flatten(1), dtype)
            for b in range(batch):
                u = near[b] - values
                logits = masks @ (u * (u + beyond[b]) * (-0.5 / request.sigma2)).T
                state.merge(SoftmaxState.of(logits, values.T.unsqueeze(-1)), (b,))
            done += len(block)
            part.progress(STAGE, done, part.hi - part.lo)
    return state


class _Totals:
    """Sums of all noisy images, relative to 2^tops, as `flush` writes them."""

    def __init__(self, batch: int, size: int) -> None:
        self.tops = np.full((batch, size), float(NOTHING_YET))
        self.sums = np.zeros((batch, size, 3))

    def add(self, found: _Totals) -> None:
        merge(
            found.tops.reshape(-1), found.sums.reshape(-1, 3), self.tops.reshape(-1), self.sums.reshape(-1, 3)
        )

    def clear(self) -> None:
        self.tops[:], self.sums[:] = NOTHING_YET, 0


def _run(part: _Part, masks: kernel.Masks, threads: int) -> SoftmaxState:
    """Scan by the kernel, on threads."""
    request, (batch, size) = part.request, part.y.shape
    count = part.hi - part.lo
    fixed = 4 * size * (BLOCK + 3 * LANES) + 8 * masks.ring * BLOCK
    threads = max(1, min(threads, part.memory // 2 // (fixed + 4 * size * BLOCK)))
    # As many tiles as fit, and at least four tasks for each thread.
    tiles = min(
        TILES, (part.memory // 2 // threads - fixed) // (4 * size * BLOCK), count // (4 * threads * BLOCK)
    )
    images = max(1, tiles) * BLOCK
    totals, stop, done = _Totals(batch, size), Event(), 0
    scratch = deque(_Scratch(part, masks, max(1, tiles), stop) for _ in range(threads))
    at_once = max(1, part.memory // 2 // (4 * size))
    pending: deque[tuple[Future[_Totals], _Scratch, int]] = deque()

    def finish() -> int:  # in the order of the tasks: sums that round depend on their order
        future, one, count = pending.popleft()
        totals.add(future.result())
        scratch.append(one)
        return count

    with (
        read_ahead(request.training.blocks(part.lo, part.hi, at_once, multiple=images)) as blocks,
        ThreadPoolExecutor(threads, "patchindex-exact") as pool,
    ):
        try:
            for task in _cut(blocks, images):
                if not scratch:
                    done += finish()
                    part.progress(STAGE, done, count)
                mine = scratch.popleft()
                pending.append((pool.submit(mine.work, task), mine, len(task)))
            while pending:
                done += finish()
                part.progress(STAGE, done, count)
        finally:
            stop.set()  # after an error or Ctrl-C, threads end with their current tile
    return _state(part, totals)


def _cut(blocks: Iterator[np.ndarray], images: int) -> Iterator[np.ndarray]:
    for block in blocks:
        for first in range(0, len(block), images):
            yield block[first : first + images]


class _Scratch:
    """The arrays of one thread."""

    def __init__(self, part: _Part, masks: kernel.Masks, tiles: int, stop: Event) -> None:
        batch, size = part.y.shape
        self._totals, self._stop, self._masks = _Totals(batch, size), stop, masks
        self._near, self._beyond = part.near.float().numpy(), part.beyond.float().numpy()
        self._scale = np.float32(1 / (2 * part.request.sigma2 * math.log(2)))
        self._tiles = [
            Tile(aligned(size * BLOCK), np.zeros(0, np.float32), 1, size, 1, BLOCK, 1) for _ in range(tiles)
        ]
        self._differences, self._recent = aligned(size * BLOCK), aligned(self._masks.ring * 2 * BLOCK)
        top = np.full(size, NOTHING_YET)
        # A skipped member weighs at most 2^-threshold, as in `Frame`.
        threshold = np.float32(math.log2((part.hi - part.lo) * 4 / NEGLIGIBLE))
        self._sums = Sums(top, aligned(size * 3 * LANES), np.zeros(1, np.float32), threshold)

    def work(self, images: np.ndarray) -> _Totals:
        """Return the sums of the images of a task, uint8 (n, H, W, C), valid until the next call."""
        self._totals.clear()
        flat = np.require(images.reshape(len(images), -1), np.uint8, ["C", "W"])
        parts = [flat[i : i + BLOCK] for i in range(0, len(flat), BLOCK)]
        for tile, some in zip(self._tiles, parts, strict=False):
            kernel.prepare(some, tile.values)
        for query, (near, beyond) in enumerate(zip(self._near, self._beyond, strict=True)):
            self._sums.top[:] = NOTHING_YET
            for tile, some in zip(self._tiles, parts, strict=False):
                if self._stop.is_set():
                    return self._totals
                kernel.square(tile.values, near, beyond, self._scale, self._differences)
                kernel.scan_masked(tile, self._differences, self._masks, len(some), self._recent, self._sums)
            flush(self._sums, 1, self._totals.tops[query], self._totals.sums[query])
        return self._totals


def _state(part: _Part, totals: _Totals) -> SoftmaxState:
    """Turn the sums of all threads into a state, in nats."""
    state = SoftmaxState.empty(tuple(part.y.shape), 1)
    state.max_logit = torch.from_numpy(totals.tops * math.log(2))
    state.weight = torch.from_numpy(totals.sums[..., 0].copy())
    state.count += part.hi - part.lo
    # The squares were rounded to float32; keep their sum within the Cauchy-Schwarz bounds.
    square = state.weight.square()
    state.weight_sq = torch.from_numpy(totals.sums[..., 1].copy())
    state.weight_sq = torch.minimum(torch.maximum(state.weight_sq, square / state.count), square)
    state.centre = torch.from_numpy(totals.sums[..., 2:].copy())
    return state
