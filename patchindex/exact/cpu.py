"""The exact scan on a CPU: tiles of training images, shared out to threads that run the kernel.

A task is a tile and a piece of the queries' work; how the work is cut depends on the data and not on the
number of threads. A thread has float32 sums of its own for a task, and adds them to float64 sums of all.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event, Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchindex.exact import kernel
from patchindex.exact.costs import full_cost, lanes, pixel_cost, plan_of
from patchindex.exact.plan import Plan
from patchindex.exact.request import Request
from patchindex.patches import Geometry
from patchindex.simd import BLOCK, LANES
from patchindex.softmax import SoftmaxState
from patchindex.training import TrainingImages, read_ahead
from patchindex.windows import query_counts

__all__ = ["load_kernel", "query_bytes", "scan"]

POLL = 0.1  # seconds between looks at progress and Ctrl-C
TASK_SECONDS = 0.2  # what a task should take at most, since threads stop between tasks
LEAST_TASKS = 32  # so that the last one to end does not keep others waiting
SAMPLE = 64  # images whose grey is taken off
NEGLIGIBLE = 1e-6  # what all that is skipped may change of a mean


class Piece(NamedTuple):
    """A share of one query's work: units of the full scan, or some of the pixels asked for."""

    query: int
    first: int
    last: int


@dataclass
class Job:
    """All work of a scan, in units that are the same for every tile.

    Attributes
    ----------
    plan : Plan
    queries : list of array of float32
        Scaled and flat, as the kernel takes them.
    pixels : list of array of int64 or None
        Which pixels of each query are asked for one by one; None where all are scanned.
    grey : array of float32, shape (C,)
        Subtracted from the images.
    norm_scale : float
    threshold : float32
    """

    plan: Plan
    queries: list[np.ndarray]
    pixels: list[np.ndarray | None]
    grey: np.ndarray
    norm_scale: float
    threshold: np.float32

    def units(self, query: int) -> int:
        """How many units a query's work has."""
        pixels = self.pixels[query]
        return self.plan.full.units if pixels is None else len(pixels)

    def unit_seconds(self, query: int) -> float:
        """Roughly what a unit takes for one tile."""
        pixels = self.pixels[query]
        cost = full_cost(self.plan) / self.units(query) if pixels is None else pixel_cost(self.plan)
        return cost * 1e-9

    def pieces(self, tiles: int) -> list[list[Piece]]:
        """Cut the work of a tile into tasks."""
        units = [self.units(q) for q in range(len(self.queries))]
        each = [self.unit_seconds(q) for q in range(len(self.queries))]
        seconds = [n * s for n, s in zip(units, each, strict=True)]
        tasks = max(math.ceil(sum(seconds) / TASK_SECONDS), math.ceil(LEAST_TASKS / tiles))
        limit = sum(seconds) / tasks
        cut: list[list[Piece]] = [[]]
        room = limit
        for q in range(len(self.queries)):
            first = 0
            while first < units[q]:
                count = max(1, min(units[q] - first, round(room / each[q])))
                cut[-1].append(Piece(q, first, first + count))
                room -= count * each[q]
                first += count
                if room < 0.5 * each[q]:
                    cut.append([])
                    room = limit
        return [pieces for pieces in cut if pieces]


def query_bytes(geometry: Geometry, channels: int) -> int:
    """Return what a query takes: pixels, a maximum in each thread, float64 sums, states with copies."""
    pixels = geometry.size[0] * geometry.size[1]
    return pixels * (4 * torch.get_num_threads() + 8 * (5 * channels + 4) + 3 * 8 * (5 + 3 * channels))


def scan(request: Request) -> SoftmaxState:
    """Scan in float32, whatever the dtype: see `Request`."""
    training, geometry, x, mask = request.training, request.geometry, request.x, request.mask
    a, beta, lo, hi = request.a, request.beta, request.lo, request.hi
    memory, told = request.memory, request.told
    batch, channels, height, width = x.shape
    plan = plan_of(geometry, channels, lanes(geometry, hi - lo))
    if _thread_bytes(plan) > memory // 2 // torch.get_num_threads():
        plan = plan_of(geometry, channels, LANES)
    # Values are integers around a grey of the data's own: smaller sums round less.
    sample = training.read(lo, min(lo + SAMPLE, hi))
    columns = sample.reshape(-1, width * channels).sum(0, dtype=np.int64)  # rows of C alone are slow
    grey = np.rint(columns.reshape(width, channels).sum(0) / (sample.size / channels)).astype(np.float32)
    grey_unit = torch.from_numpy(grey.astype(np.float64) / 127.5 - 1)
    centred = x.double() - a * grey_unit[:, None, None]
    counts = _counts(geometry)
    members = int(counts.max()) * (hi - lo)
    job = Job(
        plan=plan,
        queries=[_query(image, a / beta / math.log(2) / 127.5) for image in centred],
        pixels=_choose(plan, batch, mask),
        grey=grey,
        norm_scale=a * a / (2 * beta) / math.log(2) / 127.5**2,
        # What is skipped weighs at most 2^-threshold a member, of a sum that is 1/2 or more since the running
        # maximum was rounded up; a mean in [-1, 1] moves by twice that share.
        threshold=np.float32(math.log2(members * 4 / NEGLIGIBLE)),
    )
    tops, totals = _run(training, job, lo, hi, memory, told)
    shape = (batch, height, width)
    state = SoftmaxState.empty(shape, channels)
    logits = np.where(totals[..., 0] == 0, -np.inf, tops * math.log(2))
    state.max_logit = torch.from_numpy(logits).reshape(shape)
    state.weight = torch.from_numpy(totals[..., 0].copy()).reshape(shape)
    state.count += torch.from_numpy(counts) * (hi - lo)
    # Squares were rounded to float32 one by one; for their sum Cauchy and Schwarz hold all the same.
    square = state.weight.square()
    state.weight_sq = torch.from_numpy(totals[..., 1].copy()).reshape(shape)
    state.weight_sq = torch.minimum(torch.maximum(state.weight_sq, square / state.count), square)
    centres = torch.from_numpy(totals[..., 2:] / 127.5).reshape(*shape, channels)
    state.centre = centres + state.weight.unsqueeze(-1) * grey_unit
    # Not by torch, whose matrix products leave threads behind that spin for milliseconds, in our way.
    along_y, along_x = query_counts(geometry)
    norms = np.einsum("bij,xj->bix", centred.square().sum(1).numpy(), along_x)
    norms = np.einsum("yi,bix->byx", along_y, norms)
    state.max_logit -= torch.from_numpy(norms) / (2 * beta)
    return state


def load_kernel() -> float | None:
    """Load the compiled kernel; return the seconds of compiling it, None where that was done before.

    The first scan does it otherwise. What is compiled is kept for this processor: see `kernel.compiled`.

    Examples
    --------
    >>> seconds = load_kernel()
    >>> load_kernel() is None
    True
    """
    functions = (kernel.prepare, kernel.scan_all, kernel.scan_pixels, kernel.flush)

    def misses() -> int:
        return sum(sum(function.stats.cache_misses.values()) for function in functions)

    before, start = misses(), time.perf_counter()
    training = TrainingImages(np.zeros((1, 8, 8, 1), np.uint8))
    x, one = torch.zeros(1, 1, 8, 8), torch.arange(64)[None] == 0
    for mask in (None, one):  # all pixels are for one kernel, one pixel is for the other
        scan(
            Request(
                training=training,
                lo=0,
                hi=1,
                geometry=Geometry.of("ELS", 3, (8, 8)),
                x=x,
                a=0.5,
                beta=0.75,
                mask=mask,
                memory=1 << 20,
                dtype=torch.float32,
                told=lambda share: None,
            )
        )
    return time.perf_counter() - start if misses() > before else None


def _query(image: Tensor, scale: float) -> np.ndarray:
    """Lay out an image (C, H, W) as the kernel takes it: (H + 1, C, W), float32, flat."""
    rows = np.zeros((image.shape[1] + 1, image.shape[0], image.shape[2]), np.float32)
    rows[:-1] = (image * scale).permute(1, 0, 2).numpy()
    return rows.reshape(-1)


def _counts(geometry: Geometry) -> np.ndarray:
    """How many patches of an image each pixel is compared with: int64, shape (H, W)."""
    along = []
    for axis in (geometry.y, geometry.x):
        query = np.concatenate([offset.query for offset in axis.offsets])
        along.append(np.bincount(query, minlength=axis.size))
    return along[0][:, None] * along[1][None, :]


def _choose(plan: Plan, batch: int, mask: Tensor | None) -> list[np.ndarray | None]:
    """Decide for each query whether the pixels asked for are scanned one by one, or all at once."""
    if mask is None:
        return [None] * batch
    chosen: list[np.ndarray | None] = []
    for one in mask:
        pixels = one.nonzero()[:, 0].numpy()
        chosen.append(pixels if len(pixels) * pixel_cost(plan) < full_cost(plan) else None)
    return chosen


class _Open(NamedTuple):
    """A tile that is being worked on, and what of the queries' work is left of it."""

    images: np.ndarray
    left: deque[list[Piece]]


class _Tasks:
    """Tasks, handed to threads one at a time, and what they add up to.

    A thread has a tile to itself, so that no other need prepare it too, until there are no more tiles.

    Attributes
    ----------
    tops : array of float64, shape (B, pixels)
    totals : array of float64, shape (B, pixels, 2 + C)
        Relative to `2^tops`, as `kernel.flush` has them.
    """

    def __init__(self, job: Job, tiles: Iterator[np.ndarray], cut: list[list[Piece]]) -> None:
        self._tiles, self._cut = tiles, cut
        self._open: list[_Open] = []
        self._taking, self._adding = Lock(), Lock()
        self.stop = Event()
        self.done = 0
        height, width = job.plan.geometry.size
        self.tops = np.full((len(job.queries), height * width), float(kernel.NOTHING_YET))
        self.totals = np.zeros((*self.tops.shape, 2 + job.plan.channels))

    def take(self, tile: _Open | None) -> tuple[_Open, list[Piece]] | None:
        """Return a thread's next task, of the tile that it has if that is not done; None if there is none."""
        with self._taking:
            if tile is None or not tile.left:
                self._open = [other for other in self._open if other.left]
                images = next(self._tiles, None)
                if images is not None:
                    self._open.append(tile := _Open(images, deque(self._cut)))
                else:
                    tile = max(self._open, key=lambda other: len(other.left), default=None)
            return None if tile is None or self.stop.is_set() else (tile, tile.left.popleft())

    def add(self, query: int, sums: kernel.Sums, channels: int) -> None:
        """Take over a thread's sums for a query."""
        with self._adding:
            kernel.flush(sums, channels, self.tops[query], self.totals[query])

    def finished(self) -> None:
        with self._adding:
            self.done += 1


def _run(
    training: TrainingImages, job: Job, lo: int, hi: int, memory: int, told: Callable[[float], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Run all tasks; return what they add up to, as `_Tasks` has it."""
    lanes = job.plan.lanes
    cut = job.pieces(math.ceil((hi - lo) / lanes))
    height, width = job.plan.geometry.size
    threads = max(1, min(torch.get_num_threads(), memory // 2 // _thread_bytes(job.plan)))
    # A block is there for each thread that is not done with it, the next one, and one that is being read.
    at_once = max(1, memory // 2 // (threads + 2) // (height * width * job.plan.channels))
    with read_ahead(training.blocks(lo, hi, at_once, multiple=lanes)) as blocks:
        tiles = (block[i : i + lanes] for block in blocks for i in range(0, len(block), lanes))
        tasks = _Tasks(job, tiles, cut)
        with ThreadPoolExecutor(threads, "patchindex-exact") as pool:
            try:
                futures = [pool.submit(_work, job, tasks) for _ in range(threads)]
                running = True
                while running:
                    running = bool(wait(futures, POLL, FIRST_EXCEPTION).not_done)
                    if tasks.done:
                        told(min(1.0, tasks.done * lanes / len(cut) / (hi - lo)))
                    for future in futures:
                        if future.done():
                            future.result()
            finally:
                tasks.stop.set()  # after an error or Ctrl-C the others end with the task that they are at
    return tasks.tops, tasks.totals


def _thread_bytes(plan: Plan) -> int:
    """Return the bytes of a thread's own arrays, the largest of `_work`."""
    height, width = plan.geometry.size
    tile = height * plan.padded * plan.lanes * (plan.channels + len(plan.masks))
    return 4 * (tile + height * width * (2 + plan.channels) * LANES)


def _work(job: Job, tasks: _Tasks) -> None:
    """Take tasks until there are none."""
    plan = job.plan
    height, width = plan.geometry.size
    pixels = height * width
    tile = kernel.Tile(
        _aligned(height * plan.channels * plan.padded * plan.lanes),
        _aligned(len(plan.masks) * height * plan.padded * plan.lanes),
        height,
        width,
        plan.channels,
        plan.lanes,
        plan.padded,
    )
    tile.norms[:] = kernel.NO_LOGIT
    wrapped = plan.geometry.x.train_padding == "wrapped"
    down = np.zeros((width, plan.lanes))
    sums = _aligned(pixels * (2 + plan.channels) * LANES)
    columns = _aligned((plan.full.slot_train.shape[1] + 1) * 2 * BLOCK)
    tops = np.full((len(job.queries), pixels), kernel.NOTHING_YET)
    at: _Open | None = None
    while (task := tasks.take(at)) is not None:
        opened, pieces = task
        if at is not opened:
            at = opened
            kernel.prepare(
                np.require(at.images, np.uint8, ["C", "W"]),  # one type to compile for
                job.grey,
                job.norm_scale,
                plan.norm_rows,
                plan.norm_columns,
                plan.masks,
                wrapped,
                tile,
                down,
            )
        for query, first, last in pieces:
            mine = kernel.Sums(tops[query], sums, columns, job.threshold)
            asked = job.pixels[query]
            if asked is None:
                kernel.scan_all(tile, job.queries[query], plan.full, first, last, mine)
            else:
                kernel.scan_pixels(tile, job.queries[query], plan.direct, asked[first:last], mine)
            tasks.add(query, mine, plan.channels)
        tasks.finished()


def _aligned(n: int) -> np.ndarray:
    """Return n zeros, float32, on a cache line."""
    room = np.zeros(n * 4 + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * n].view(np.float32)
