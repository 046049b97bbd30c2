"""The exact scan on a GPU by the fused kernel, `patchindex.kernels.fused`.

Noisy images become the rows of a matrix once, class by class. Training images pass in blocks, whose windows
become rows too. A program of the kernel compares some query windows with the windows of a segment, a few
images of a block, and writes sums in float32. The sums of segments are merged in float64.

A sum of a segment has at most `Settings.columns` members (or the windows of one image) in `BN` at a time: its
relative error is below 3e-5, and about 1e-6 where the rounding errors are not all of the same sign.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from patchindex.exact.fused_device import OPTIONS, Settings, interpreted, settings_of
from patchindex.exact.parts import STAGE
from patchindex.exact.request import ScoreRequest
from patchindex.exact.window_tables import Queries, tables_of
from patchindex.geometry import Geometry, query_counts
from patchindex.images.on_device import blocks_on
from patchindex.runtime import said_after
from patchindex.softmax import SoftmaxState

__all__ = ["Fused"]

log = logging.getLogger(__name__)

COMPILES = "Triton compiles the engine 'fused' for k = %d on %s, for some seconds; ~/.triton keeps the result"
SAMPLE = 64  # images whose mean colour is the grey
WINDOW_BYTES = 1 << 30  # of the training windows of a block: more do not pay
UNFOLDED = 64  # numbers of a window that are written at a time
MERGED_ROWS, MERGED_SEGMENTS = 32, 32  # of a program that merges
LARGEST_INT = (1 << 31) - 1

SLOW = 2.0  # seconds of a launch, after which a message says that Triton compiles

_launched = set[tuple[object, ...]]()  # devices and kernels that Triton has compiled or read from its cache
_launching = Lock()  # scans of several threads compile a kernel once, and the interpreter knows no threads


@dataclass(frozen=True)
class Fused:
    """The engine, by default with `settings_of` the device."""

    settings: Settings | None = None

    def query_bytes(self, geometry: Geometry, channels: int) -> int:
        """Return the bytes of a query's windows, of its sums, and of its states with copies."""
        height, width = geometry.size
        sums = 4 + 8 * (2 + channels) + 3 * 8 * (5 + 3 * channels)
        return height * width * (4 * tables_of(geometry, channels).stride + sums)

    def scan_parts(self, request: ScoreRequest, bounds: Sequence[int]) -> SoftmaxState:
        """Return the states of parts of the training images, (P, B, H, W), as `engine.scan_parts` does."""
        (lo, hi), training = request.image_range, request.training
        if list(bounds) != [0, hi - lo]:  # parts are counted in label order
            first, last = bounds[0], bounds[-1]
            training, lo, hi = training.select(slice(lo + first, lo + last)), 0, last - first
        ends = np.asarray(bounds) - bounds[0]
        batch, channels, height, width = request.x.shape
        settings = self.settings or settings_of(request.x.device)
        frame = _Frame(request, training.read(lo, min(lo + SAMPLE, hi)), settings)
        scan = _Scan(request, frame, len(ends) - 1)
        done = 0
        size = scan.images_at_once
        block_bytes = size * height * width * channels
        with blocks_on(training, request.x.device, lo, hi, size, block_bytes=block_bytes) as blocks:
            for block in blocks:
                scan.add(block, done, ends)
                done += len(block)
                request.progress(STAGE, done, hi - lo)
        return scan.state(np.diff(ends)).reshape((len(ends) - 1, batch, height, width))


class _Frame:
    """Noisy images in grey levels, centred, and the norms that their logits lack."""

    def __init__(self, request: ScoreRequest, sample: np.ndarray, settings: Settings) -> None:
        geometry, x, a, beta = request.geometry, request.x.double(), request.a, request.beta
        self.settings = settings
        self.tables = tables_of(geometry, x.shape[1], self.settings.most_held)
        # Subtracted from all images: sums of smaller values have smaller rounding errors.
        self.grey = torch.from_numpy(np.rint(sample.mean((0, 1, 2), dtype=np.float64))).to(x.device)
        self.unit_grey = self.grey / 127.5 - 1
        self.centred = x - a * self.unit_grey[:, None, None]
        self.scale = a / beta / math.log(2) / 127.5
        self.norm_scale = a * a / (2 * beta) / math.log(2) / 127.5**2
        along_y, along_x = (torch.from_numpy(counts).to(x.device) for counts in query_counts(geometry))
        squares = self.centred.square().sum(1)
        self.norms = torch.einsum("yi,bij,xj->byx", along_y, squares, along_x).reshape(-1) / (2 * beta)


class _Scan:
    """A scan of blocks of training images, whose sums grow with each block."""

    def __init__(self, request: ScoreRequest, frame: _Frame, parts: int) -> None:
        tables, device = frame.tables, request.x.device
        self._frame, self._tables, self._geometry = frame, tables, request.geometry
        self._queries = queries = Queries(tables, frame.centred, frame.scale, request.mask)
        rows, self._fields = len(queries.pixels), 3 + tables.channels
        self._tops = torch.full((parts, rows), -torch.inf, device=device)
        self._totals = torch.zeros((parts, self._fields - 1, rows), dtype=torch.float64, device=device)
        axes = (request.geometry.y, request.geometry.x)
        self._along = [torch.from_numpy(axis.window).to(device) for axis in axes]
        self._offsets, self._places = (
            torch.from_numpy(table).to(device) for table in (tables.offsets, queries.places)
        )
        self._blocks = [
            (size, len(blocks), torch.from_numpy(blocks).to(device)) for size, blocks in queries.blocks
        ]
        programs = sum(count for _, count, _ in self._blocks)
        # A quarter of the memory is for the sums of segments, and a quarter for the images of a block.
        room = max(1, request.memory // 4 // (4 * self._fields * rows))
        self._segments = min(room, -(-frame.settings.programs // programs))
        self._images_of_segment = max(1, frame.settings.columns // int(tables.counts.max()))
        channels, windows, plane = tables.channels, len(queries.places), math.prod(tables.padded)
        unfolded = windows * (2 * tables.stride + 16)
        prepared = plane * (2 * channels + 4) + math.prod(request.geometry.size) * (11 * channels + 28)
        self.images_at_once = max(
            1,
            min(
                WINDOW_BYTES // unfolded,
                request.memory // 4 // (unfolded + prepared),
                room * self._images_of_segment,
                LARGEST_INT // max(windows, plane * channels),
            ),
        )

    def add(self, images: Tensor, first: int, ends: np.ndarray) -> None:
        """Add images (n, H, W, C), numbered from `first`; parts end at `ends`."""
        from patchindex.kernels import fused as kernel

        n, rows, device = len(images), len(self._queries.pixels), images.device
        step = max(1, min(-(-n // self._segments), self._images_of_segment))
        cut, bounds, part = _segments(first, first + n, ends, step)
        segments, of_parts = torch.from_numpy(cut).to(device), torch.from_numpy(bounds).to(device)
        sums = torch.empty((len(cut), self._fields, rows), device=device)
        with _launching, nullcontext() if interpreted() else self._launch_on(device):
            self._compare(self._unfold(images), n, segments, sums)
            kernel.merge_segments[(-(-rows // MERGED_ROWS), len(bounds) - 1)](
                sums, of_parts, self._tops, self._totals, rows, part,
                SUMS=self._fields - 1, BM=MERGED_ROWS, BS=MERGED_SEGMENTS, **OPTIONS,
            )  # fmt: skip

    @contextmanager
    def _launch_on(self, device: torch.device) -> Iterator[None]:
        """Launch on a device; say that Triton compiles if the first launch of a kernel takes long."""
        kernels = (device, self._tables.layout, self._tables.channels, *(size for size, _, _ in self._blocks))
        first = said_after(SLOW, partial(log.warning, COMPILES, self._geometry.k, device))
        with torch.cuda.device(device), nullcontext() if kernels in _launched else first:
            yield
        _launched.add(kernels)

    def _unfold(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return all training windows in float16, and their biases and centres (..., 4) in float32."""
        from patchindex.kernels import fused as kernel

        tables, n, places, device = self._tables, len(images), len(self._places), images.device
        pixels, plane_biases = self._prepare(images)
        windows = torch.empty((n * places, tables.stride), dtype=torch.half, device=device)
        columns = torch.empty((n * places, 4), device=device)
        at_once = self._frame.settings.unfolded
        kernel.unfold[(n * -(-places // at_once),)](
            pixels, plane_biases, self._offsets, self._places, windows, columns,
            n, places, math.prod(tables.padded), tables.stride,
            CHANNELS=tables.channels, BN=at_once, BD=UNFOLDED, **OPTIONS,
        )  # fmt: skip
        return windows, columns

    def _prepare(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels (n, plane, C) in float16, and the logits of windows with zeros (n, plane)."""
        tables, frame, (along_y, along_x) = self._tables, self._frame, self._along
        pixels = images.half() - frame.grey.half()
        squares = pixels.double().square_().sum(3)
        biases = (along_y @ squares @ along_x.T).mul_(-frame.norm_scale).float()
        for axis, (before, padded) in enumerate(zip(tables.before, tables.padded, strict=True), 1):
            size = images.shape[axis]
            if padded != size:
                at = torch.arange(-before, padded - before, device=images.device) % size
                pixels, biases = pixels.index_select(axis, at), biases.index_select(axis, at)
        return pixels, biases

    def _compare(self, unfolded: tuple[Tensor, Tensor], images: int, segments: Tensor, sums: Tensor) -> None:
        """Write the partial sums of the segments of a block of `images` images."""
        from patchindex.kernels import fused as kernel

        tables, queries, layout = self._tables, self._queries, self._tables.layout
        for size, count, blocks in self._blocks:
            kernel.scan_block[(count * len(segments),)](
                queries.high, queries.low, queries.scales, *unfolded, blocks, segments, sums,
                count, len(queries.pixels), images, tables.stride,
                CHANNELS=tables.channels, BM=size, BD=layout.first, REST=layout.rest, HELD=layout.held,
                **self._frame.settings.of_program(size, layout),
            )  # fmt: skip

    def state(self, images: np.ndarray) -> SoftmaxState:
        """Return the states of parts of `images` images each, (P, B * H * W); unwanted pixels are empty."""
        frame, tables, pixels = self._frame, self._tables, self._queries.pixels
        parts, device = len(images), self._tops.device
        state = SoftmaxState.empty((parts, len(pixels)), tables.channels, device)
        state.max_logit = self._tops.double() * math.log(2) - frame.norms[pixels]
        state.weight, state.weight_sq = self._totals[:, 0], self._totals[:, 1]
        classes = self._geometry.query_classes.reshape(-1)
        members = torch.from_numpy(tables.counts[classes]).to(device)[pixels % len(classes)]
        state.count = torch.from_numpy(images).to(device)[:, None] * members
        # The squares were rounded to float32; keep their sum within the Cauchy-Schwarz bounds.
        square = state.weight.square()
        state.weight_sq = torch.minimum(torch.maximum(state.weight_sq, square / state.count), square)
        centre = self._totals[:, 2:].transpose(1, 2) / 127.5
        state.centre = centre + state.weight.unsqueeze(-1) * frame.unit_grey
        whole = SoftmaxState.empty((parts, frame.norms.numel()), tables.channels, device)
        whole.write((slice(None), pixels), state)
        return whole


def _segments(first: int, last: int, ends: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Cut images [first, last) into segments of at most `step` images of one part.

    Return segments (n, 2), counted from `first`; the bounds of the segments of each part that has any; and
    the number of the first of these parts.
    """
    part = int(np.searchsorted(ends, first, "right")) - 1
    inner = ends[(ends > first) & (ends < last)]
    segments, bounds = [], [0]
    for a, b in pairwise([first, *inner.tolist(), last]):
        pieces = -(-(b - a) // step)
        cuts = a - first + (b - a) * np.arange(pieces + 1) // pieces
        segments.append(np.stack([cuts[:-1], cuts[1:]], 1))
        bounds.append(bounds[-1] + pieces)
    return np.concatenate(segments).astype(np.int32), np.array(bounds, np.int64), part
