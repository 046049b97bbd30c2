"""The exact scan on a CPU: threads run the kernel on tiles of training images.

A noisy image is a *query*, and a few training images are a *tile*. A *task* compares one tile with a part of
the queries. The cut into tasks depends on the data and on the memory, and not on the number of threads. Each
thread keeps float32 sums for a task, which are added to float64 sums in the order of the tasks.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import pairwise
from threading import Condition, Event
from typing import NamedTuple

import numpy as np
import torch

from patchindex.exact.costs import full_cost, lanes, pixel_cost, plan_of
from patchindex.exact.frame import SAMPLE, Frame
from patchindex.exact.in_order import InOrder
from patchindex.exact.parts import STAGE, scan_each
from patchindex.exact.request import ScoreRequest
from patchindex.exact.tables import Plan
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages, read_ahead
from patchindex.kernels import scan as kernel
from patchindex.kernels.simd import BLOCK, LANES, aligned
from patchindex.kernels.totals import flush, merge
from patchindex.softmax import SoftmaxState

__all__ = ["load_kernel", "new_sums", "new_tile", "prepare", "query_bytes", "scan_parts"]

log = logging.getLogger(__name__)

POLL = 0.1  # seconds between looks at progress and Ctrl-C
TASK_SECONDS = 0.2  # the longest task: Ctrl-C stops threads only between tasks
LEAST_LAG = 4  # tiles in a row that threads can work on without waiting for one another
LEAST_TASKS = 16  # with many tasks, threads wait little for the last task to end
ROOM = 4  # threads for whose tiles the memory must suffice: with larger tiles, fewer threads could run


class Piece(NamedTuple):
    """A part [first, last) of one query's work: of the units of a full scan, or of the wanted pixels."""

    query: int
    first: int
    last: int


def query_bytes(geometry: Geometry, channels: int) -> int:
    """Return the bytes of a query: its sums in float64, the sums that wait to be merged, and three states."""
    pixels, waiting = geometry.size[0] * geometry.size[1], 8 * (3 + channels) * torch.get_num_threads()
    return pixels * (waiting + 8 * (5 * channels + 4) + 3 * 8 * (5 + 3 * channels))


def scan_parts(request: ScoreRequest, bounds: Sequence[int]) -> SoftmaxState:
    """Return the states of parts of the training images, (P, B, H, W), as `engine.scan_parts` does."""
    return scan_each(_scan, request, bounds)


def _scan(request: ScoreRequest) -> SoftmaxState:
    """Sum the softmax over all patches, in float32 whatever the dtype of the request."""
    geometry, x = request.geometry, request.x
    lo, hi = request.image_range
    plan = _plan(geometry, x.shape[1], hi - lo, request.memory // 2)
    frame = Frame.of(plan, x, request.beta, request.training.read(lo, min(lo + SAMPLE, hi)), hi - lo)
    tasks = _run(request, frame, _choose(plan, request))
    return frame.state(tasks.tops, tasks.totals, frame.counts * (hi - lo))


def _plan(geometry: Geometry, channels: int, images: int, memory: int) -> Plan:
    """Return the plan with the largest tiles of which `memory` holds four sets.

    Float sums depend on the size of a tile, so the size does not depend on the number of threads.
    """
    wanted = lanes(geometry, images)
    plan = plan_of(geometry, channels, wanted)
    while wanted > LANES and ROOM * _thread_bytes(plan) > memory:
        wanted //= 2
        plan = plan_of(geometry, channels, wanted)
    return plan


def load_kernel() -> float | None:
    """Load the kernel; return the seconds that compiling took, or None if the kernel was compiled before.

    `patchindex.kernels.compile` says where machine code is kept.
    """
    functions = (kernel.prepare, kernel.scan_all, kernel.scan_pixels, flush, merge)

    def misses() -> int:
        return sum(sum(function.stats.cache_misses.values()) for function in functions)

    before, start = misses(), time.perf_counter()
    training = TrainingImages(np.zeros((1, 8, 8, 1), np.uint8))
    x, one = torch.zeros(1, 1, 8, 8), (torch.arange(64) == 0).reshape(1, 8, 8)
    for mask in (None, one):  # one kernel scans all pixels, the other a single pixel
        _scan(ScoreRequest(training, Geometry.of("ELS", 3, (8, 8)), x, 0.75, pixels=mask, memory=1 << 20))
    seconds, compiled = time.perf_counter() - start, misses() > before
    log.info("exact kernels %s in %.1f s", "compiled" if compiled else "loaded from the cache", seconds)
    return seconds if compiled else None


def _choose(plan: Plan, request: ScoreRequest) -> list[np.ndarray | None]:
    """Return, per query, the pixels to scan one by one, or None where a scan of all pixels is cheaper."""
    if request.mask is None:
        return [None] * len(request.x)
    chosen: list[np.ndarray | None] = []
    for one in request.mask:
        pixels = one.nonzero()[:, 0].numpy()
        chosen.append(pixels if len(pixels) * pixel_cost(plan) < full_cost(plan) else None)
    return chosen


def _cut(plan: Plan, pixels: list[np.ndarray | None], tiles: int) -> list[list[Piece]]:
    """Cut the work of a tile into tasks: queries into pieces, and neighbouring pieces into tasks.

    The pieces of a query do not depend on other queries, so that its sums have the same bytes in any batch.
    """
    units = [plan.full.units if some is None else len(some) for some in pixels]
    each = [
        1e-9 * (full_cost(plan) / n if some is None else pixel_cost(plan))
        for some, n in zip(pixels, units, strict=True)
    ]
    least, total = math.ceil(LEAST_TASKS / tiles), sum(n * s for n, s in zip(units, each, strict=True))
    limit = total / max(least, math.ceil(total / TASK_SECONDS))
    cut: list[list[Piece]] = [[]]
    room = limit
    for q, (n, seconds) in enumerate(zip(units, each, strict=True)):
        pieces = min(n, max(least, math.ceil(n * seconds / TASK_SECONDS)))
        for first, last in pairwise(n * i // pieces for i in range(pieces + 1) if pieces):
            if cut[-1] and room < 0.5 * (last - first) * seconds:
                cut.append([])
                room = limit
            cut[-1].append(Piece(q, first, last))
            room -= (last - first) * seconds
    return [pieces for pieces in cut if pieces]


class _Task(NamedTuple):
    """The work of one thread for a moment: pieces of a tile, and the number of the task in all tiles."""

    images: np.ndarray
    tops: np.ndarray  # float32 (queries, pixels): maxima to start from
    pieces: list[Piece]
    number: int


class _Found(NamedTuple):
    """The sums of a piece, relative to 2^tops, as `flush` writes them."""

    query: int
    tops: np.ndarray
    totals: np.ndarray


class _Tasks:
    """Give tasks to threads one at a time, and merge their sums in the order of the tasks.

    Each thread first takes the tasks of a tile of its own, because each thread that works on a tile must
    prepare the tile. When no new tile is left, a thread takes tasks from the tiles of other threads.

    The sums of a task do not depend on the thread or on the time, so that equal requests give equal bytes: a
    task starts from the maxima of the logits in about two thirds of the tiles before.
    """

    def __init__(self, frame: Frame, tiles: Iterator[np.ndarray], cut: list[list[Piece]]) -> None:
        self._tiles, self._cut, self._number = tiles, cut, 0
        self._open: list[deque[_Task]] = []
        self._taking = Condition()
        self._merging = InOrder(self._merge)
        self.stop = Event()
        shape = len(frame.queries), frame.counts.size
        self._starts = {0: np.full(shape, kernel.NOTHING_YET)}  # by the number of tiles that they are of
        self.tops = np.full(shape, float(kernel.NOTHING_YET))
        self.totals = np.zeros((*shape, 2 + frame.plan.channels))

    @property
    def done(self) -> int:
        """Number of tasks whose sums are merged."""
        return self._merging.done

    def take(self, own: deque[_Task] | None) -> tuple[deque[_Task], _Task] | None:
        """Return the tasks of a tile, and one of them; None at the end."""
        with self._taking:
            while not own:
                if self.stop.is_set():
                    return None
                self._open = [tasks for tasks in self._open if tasks]
                if self._start() in self._starts:
                    own = self._next_tile()
                    if own is None and not self._open:
                        return None
                if not own and self._open:
                    own = max(self._open, key=len)
                elif not own:
                    self._taking.wait(POLL)  # for sums that the next tile starts from
            return None if self.stop.is_set() else (own, own.popleft())

    def _start(self) -> int:
        """Return the number of tiles whose maxima the next tile starts from: about 2/3 of those before."""
        most = min(self._number * 3 // 4, self._number - LEAST_LAG)
        if most < 1:
            return 0
        power = 1 << (most.bit_length() - 1)
        return max(each for each in (power, power * 3 // 2) if each <= most)

    def _next_tile(self) -> deque[_Task] | None:
        images = next(self._tiles, None)
        if images is None:
            return None
        tops, first = self._starts[self._start()], self._number * len(self._cut)
        tasks = deque(_Task(images, tops, pieces, first + i) for i, pieces in enumerate(self._cut))
        self._number += 1
        self._open.append(tasks)
        return tasks

    def finish(self, task: _Task, found: list[_Found]) -> None:
        """Take the sums of a task."""
        self._merging.add(task.number, found)

    def _merge(self, found: list[_Found]) -> None:
        for query, tops, totals in found:
            merge(tops, totals, self.tops[query], self.totals[query])
        tiles, rest = divmod(self._merging.done + 1, len(self._cut))
        if rest == 0 and tiles // (tiles & -tiles) in (1, 3):  # 1, 2, 3, 4, 6, 8, 12, ...
            with self._taking:
                self._starts[tiles] = self.tops.astype(np.float32)
                needed = self._start()
                self._starts = {n: tops for n, tops in self._starts.items() if n >= needed}
                self._taking.notify_all()


def _run(request: ScoreRequest, frame: Frame, pixels: list[np.ndarray | None]) -> _Tasks:
    """Run all tasks; `_choose` returned `pixels`."""
    (lo, hi), memory, plan = request.image_range, request.memory, frame.plan
    lanes = plan.lanes
    cut = _cut(plan, pixels, math.ceil((hi - lo) / lanes))
    threads = max(1, min(torch.get_num_threads(), memory // 2 // _thread_bytes(plan)))
    # In memory at once: a block for each thread, the next block, and one that is being read.
    at_once = max(1, memory // 2 // (threads + 2) // (frame.counts.size * plan.channels))
    with read_ahead(request.training.blocks(lo, hi, at_once, multiple=lanes)) as blocks:
        tasks = _Tasks(frame, _tiles(blocks, lanes), cut)
        with ThreadPoolExecutor(threads, "patchindex-exact") as pool:
            try:
                futures = [pool.submit(_work, frame, pixels, tasks) for _ in range(threads)]
                running = True
                while running:
                    running = bool(wait(futures, POLL, FIRST_EXCEPTION).not_done)
                    if tasks.done:
                        request.progress(STAGE, min(hi - lo, tasks.done * lanes / len(cut)), hi - lo)
                    for future in futures:
                        if future.done():
                            future.result()
            finally:
                tasks.stop.set()  # after an error or Ctrl-C, threads end with their current task
    return tasks


def _tiles(blocks: Iterator[np.ndarray], lanes: int) -> Iterator[np.ndarray]:
    """Yield tiles of `lanes` images, the last of which may have fewer, wherever a block ends."""
    rest: np.ndarray | None = None  # the last images of a block, too few for a tile
    for block in blocks:
        if rest is not None:
            missing = lanes - len(rest)
            rest, block = np.concatenate([rest, block[:missing]]), block[missing:]
            if len(rest) < lanes:
                continue
            yield rest
        whole = len(block) // lanes * lanes
        yield from (block[i : i + lanes] for i in range(0, whole, lanes))
        rest = block[whole:] if whole < len(block) else None
    if rest is not None:
        yield rest


def _thread_bytes(plan: Plan) -> int:
    """Return the bytes of the largest arrays of `_work`, one set per thread."""
    height, width = plan.geometry.size
    tile = height * plan.padded * plan.lanes * (plan.channels + len(plan.masks))
    return 4 * (tile + height * width * (2 + plan.channels) * LANES)


def _work(frame: Frame, pixels: list[np.ndarray | None], tasks: _Tasks) -> None:
    """Take tasks until there are none."""
    plan, images = frame.plan, None
    tile, down = new_tile(plan)
    sums = new_sums(plan, np.empty(frame.counts.size, np.float32), frame.threshold)
    own: deque[_Task] | None = None
    while (taken := tasks.take(own)) is not None:
        own, task = taken
        if images is not task.images:
            images = task.images
            prepare(frame, images, tile, down)
        found = []
        for query, first, last in task.pieces:
            sums.top[:] = task.tops[query]
            some, image = pixels[query], frame.queries[query]
            if some is None:
                kernel.scan_all(tile, image, plan.full, np.arange(first, last), sums)
            else:
                kernel.scan_pixels(tile, image, plan.windows, plan.singles, some[first:last], sums)
            tops = np.full(frame.counts.size, float(kernel.NOTHING_YET))
            totals = np.zeros((frame.counts.size, 2 + plan.channels))
            flush(sums, plan.channels, tops, totals)
            found.append(_Found(query, tops, totals))
        tasks.finish(task, found)


def new_tile(plan: Plan) -> tuple[kernel.Tile, np.ndarray]:
    """Return an empty tile, and the scratch array that `kernel.prepare` needs."""
    height, width = plan.geometry.size
    tile = kernel.Tile(
        aligned(height * plan.channels * plan.padded * plan.lanes),
        aligned(len(plan.masks) * height * plan.padded * plan.lanes),
        height,
        width,
        plan.channels,
        plan.lanes,
        plan.padded,
    )
    tile.norms[:] = kernel.NO_LOGIT
    return tile, np.zeros((width, plan.lanes))


def prepare(frame: Frame, images: np.ndarray, tile: kernel.Tile, down: np.ndarray) -> None:
    """Write images (n, H, W, C) into the arrays of `new_tile`."""
    plan = frame.plan
    kernel.prepare(
        np.require(images, np.uint8, ["C", "W"]),  # one type, so that the kernel is compiled once
        frame.grey,
        frame.norm_scale,
        plan.norm_rows,
        plan.norm_columns,
        plan.masks,
        plan.geometry.x.train_padding == "wrapped",
        tile,
        down,
    )


def new_sums(plan: Plan, top: np.ndarray, threshold: np.float32) -> kernel.Sums:
    """Return empty sums of weights, relative to the running maxima `top` of the logits."""
    sums = aligned(len(top) * (2 + plan.channels) * LANES)
    columns = aligned((plan.full.slot_train.shape[1] + 1) * 2 * BLOCK)
    return kernel.Sums(top, sums, columns, threshold)
