"""`priority`: a softmax over patches drawn by two-level priority sampling, with standard errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from patchindex.backends import pool
from patchindex.estimators.base import Data, Estimate, Query, check_cpu, index_of, scale_of
from patchindex.index import ScaleIndex
from patchindex.index.codes import CODES, NEVER, Codes, Queries
from patchindex.index.rerank import sample_sums, window_tables
from patchindex.index.retrieval import Kept, Visits, choose_blocks, scan_blocks
from patchindex.simd import BLOCK, LANES
from patchindex.softmax import SoftmaxState
from patchindex.windows import query_windows

__all__ = ["Drawn", "Priority", "draw"]

LOG2_E = 1.4426950408889634
ROWS = 256  # pixels whose lists are weighed in one product: always as many, so that all are rounded alike
FLOOR = 0.05  # share of the blocks that is drawn evenly from all lists


@dataclass(frozen=True)
class Drawn:
    """What was drawn for some pixels.

    Attributes
    ----------
    state : SoftmaxState, shape (pixels,)
    evaluated : Tensor, shape (pixels,), float64
        Share of the estimated softmax that the patches evaluated hold, each counted once.
    codes : int
        Codes scanned.
    """

    state: SoftmaxState
    evaluated: Tensor
    codes: int


class Priority:
    """Draw patches by priority, and weigh them by one over the probability of having drawn them.

    Blocks of codes are drawn first, by what their lists are expected to weigh, then codes from them by what
    they seem to weigh; of these the exact logits are computed. So a softmax that few patches dominate is
    summed over these, and a broad one is sampled; the sums are unbiased for each noise level, and their
    ratio, the posterior mean, has a bias that is small against its standard error.

    Parameters
    ----------
    data : Data
        With an index, on the CPU.
    blocks : int
        Blocks of 64 codes that are scanned for a pixel, on average.
    samples : int
        Patches that are evaluated exactly for a pixel, at most.

    Raises
    ------
    InputError
        When there is no index, or an option is below 1.
    """

    def __init__(self, data: Data, blocks: int = 1024, samples: int = 1024) -> None:
        check_cpu(data, "priority")
        index_of(data, "priority", blocks=blocks, samples=samples)
        self._data, self._blocks, self._samples = data, blocks, samples

    def __call__(self, query: Query) -> Estimate:
        """Draw for every pixel of the query."""
        batch, _, height, width = query.x.shape
        drawn = draw(
            self._data,
            query,
            np.arange(batch * height * width),
            blocks=self._blocks,
            samples=self._samples,
        )
        shape = (batch, height, width)
        state = drawn.state.reshape(shape)
        return Estimate.from_state(
            state,
            stderr=state.stderr().square().mean(-1).sqrt(),
            captured_mass=drawn.evaluated.reshape(shape),
            codes_scanned=drawn.codes,
        )


def draw(data: Data, query: Query, pixels: np.ndarray, *, blocks: int, samples: int) -> Drawn:
    """Draw patches for some pixels of a batch.

    Parameters
    ----------
    data, query
        As for an estimator.
    pixels : array of int, shape (n,)
        Raster numbers of pixels in the whole batch, image after image.
    blocks, samples : int
        As for `Priority`.
    """
    index = index_of(data, "priority")
    scale = index.scale(scale_of(query, "priority"))
    label = None if query.label is None else index.attributes["labels"].index(query.label)
    worker = _Worker(data, scale, query, label, blocks, samples)
    keys = _keys(query, pixels)
    classes = np.tile(scale.geometry.query_classes.reshape(-1), len(query.x))[pixels]
    state = np.empty((len(pixels), 5 + 3 * query.x.shape[1]))
    counts, codes = np.empty(len(pixels), np.int64), 0
    done = 0
    for c in np.unique(classes):
        rows = np.flatnonzero(classes == c)
        lists = worker.lists_of(int(c))
        for first in range(0, len(rows), worker.group):
            some = rows[first : first + worker.group]
            state[some], counts[some], scanned = worker.run(lists, pixels[some], keys[some])
            codes += scanned
            done += len(some)
            if query.progress is not None:
                query.progress(done / len(pixels))
    return Drawn(*_as_state(state, counts, query.x.shape[1]), codes)


def _as_state(sums: np.ndarray, counts: np.ndarray, channels: int) -> tuple[SoftmaxState, Tensor]:
    """Turn what `sample_sums` wrote into a softmax state and the share that was evaluated."""
    table = torch.from_numpy(sums)
    state = SoftmaxState(
        max_logit=table[:, 0],
        weight=table[:, 1],
        weight_sq=table[:, 2],
        variance=table[:, 4 : 5 + 2 * channels],
        centre=table[:, 5 + 2 * channels :],
        count=torch.from_numpy(counts),
    )
    return state, (table[:, 3] / table[:, 1]).clamp(max=1)


def _keys(query: Query, pixels: np.ndarray) -> np.ndarray:
    """Hash (seed, time, sample, pixel) to two words a pixel, uint32, shape (n, 2)."""
    height, width = query.x.shape[2:]
    sample, place = np.divmod(pixels, height * width)
    samples = range(len(query.x)) if query.samples is None else query.samples
    numbers = np.array([number % 2**64 for number in samples], np.uint64)
    words = (query.seed % 2**64, np.float64(query.beta).view(np.uint64), numbers[sample], place)
    state = np.zeros(len(pixels), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:  # splitmix64, once for each word
            state = state ^ (np.asarray(word).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.stack([state >> np.uint64(32), state & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)


@dataclass(frozen=True)
class _Lists:
    """The lists of a position class, as the kernels take them."""

    codes: Codes
    ids_at: np.ndarray
    blocks: np.ndarray  # padded, float32
    first_block: np.ndarray
    base: Tensor  # log2, padded
    slopes: Tensor


class _Worker:
    """All that is the same for the pixels of a query."""

    def __init__(
        self, data: Data, scale: ScaleIndex, query: Query, label: int | None, blocks: int, samples: int
    ) -> None:
        self._scale, self._query, self._label = scale, query, label
        self._visits = blocks + 10 * int(blocks**0.5) + BLOCK
        # There are no more codes to keep than are scanned.
        self._budget, self._samples = blocks, min(samples, CODES * self._visits)
        self._images = data.index.pixels.numpy().reshape(-1)  # type: ignore[union-attr]
        self._threads = torch.get_num_threads()
        a, beta, geometry = query.a, query.beta, scale.geometry
        # One image at a time: products of another shape would round otherwise.
        self._z = torch.cat([scale.pca.project_queries(x[None], geometry, a) for x in query.x])
        channels = query.x.shape[1]
        used = geometry.k * channels
        line = -(-used // LANES) * LANES
        self._mask = np.zeros(line, np.float32)
        self._mask[:used] = 1
        windows = query_windows(query.x, geometry).reshape(len(self._z), geometry.k, used)
        windows = (windows / a + 1) * 127.5
        self._queries = torch.nn.functional.pad(windows, (0, line - used)).flatten(1).contiguous().numpy()
        self._size = (*geometry.size, channels)
        self._windows = window_tables(geometry)
        self._exact_scale = (a / 127.5) ** 2 / (2 * beta)
        self._capacity = 4 * self._samples
        # A thread takes these for each of its pixels: visits, in two orders, and what is kept.
        per_pixel = self._visits * 24 + self._capacity * 20
        self.group = max(1, data.memory // 2 // per_pixel)

    def lists_of(self, c: int) -> _Lists:
        """Return the lists of position class c."""
        codes, ids_at = self._scale.codes(c, self._label)
        blocks = -(-codes.size // CODES)
        padded = np.zeros(-(-len(blocks) // BLOCK) * BLOCK, np.float32)
        padded[: len(blocks)] = blocks
        base, slopes = self._scale.moments.weights(c, self._query.a, self._query.beta, self._label)
        padding = (0, len(padded) - len(blocks))
        return _Lists(
            codes,
            ids_at,
            padded,
            np.concatenate([[0], np.cumsum(blocks)]),
            torch.nn.functional.pad(base * LOG2_E, padding, value=float(NEVER)),
            torch.nn.functional.pad(slopes * LOG2_E, padding),
        )

    def run(self, lists: _Lists, pixels: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the sums of some pixels of a class, how many patches they are of, and the codes scanned."""
        n = len(pixels)
        capacity = min(self._visits, int(lists.first_block[-1]))
        visits = Visits(
            np.empty((n, capacity), np.int64),
            np.empty((n, capacity), np.int32),
            np.empty((n, capacity), np.float32),
            np.zeros(n, np.int64),
        )
        workers = pool(self._threads)
        for first, weights in self._weights(lists, pixels):
            these = slice(first, first + len(weights))
            mine, drawn = keys[these], [array[these] for array in visits]
            parts = [
                (weights[i], mine[i], Visits(*(array[i] for array in drawn))) for i in self._shares(len(mine))
            ]
            list(workers.map(lambda part: self._choose(lists, *part), parts))
        if (visits.drawn > capacity).any():
            raise AssertionError("more blocks were drawn than ten standard deviations allow for")
        shares = [(pixels[i], keys[i], Visits(*(array[i] for array in visits))) for i in self._shares(n)]
        done = list(workers.map(lambda part: self._scan(lists, *part), shares))
        return (
            np.concatenate([state for state, _, _ in done]),
            np.concatenate([count for _, count, _ in done]),
            sum(codes for _, _, codes in done),
        )

    def _shares(self, n: int) -> list[slice]:
        """Cut n pixels into a piece for each thread."""
        edges = np.linspace(0, n, min(n, self._threads) + 1).astype(int)
        return [slice(lo, hi) for lo, hi in pairwise(edges)]

    def _weights(self, lists: _Lists, pixels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield where some pixels begin, and the log2 weights of all lists for them, padded."""
        z = torch.zeros(ROWS, 2 * self._z.shape[1], dtype=torch.float32)
        weights = torch.empty(ROWS, len(lists.blocks), dtype=torch.float32)
        for first in range(0, len(pixels), ROWS):
            some = self._z[torch.from_numpy(pixels[first : first + ROWS])]
            z[: len(some)] = torch.cat([some.square(), some], 1)
            torch.addmm(lists.base, z, lists.slopes, out=weights)
            yield first, weights[: len(some)].numpy()

    def _choose(self, lists: _Lists, weights: np.ndarray, keys: np.ndarray, visits: Visits) -> None:
        room = np.empty((2, len(lists.blocks)), np.float32)
        choose_blocks(
            weights, lists.blocks, lists.first_block, float(self._budget), FLOOR, keys, room, visits
        )

    def _scan(
        self, lists: _Lists, pixels: np.ndarray, keys: np.ndarray, visits: Visits
    ) -> tuple[np.ndarray, np.ndarray, int]:
        query, n, capacity = self._query, len(pixels), self._capacity
        shape = (n, capacity)
        kept = Kept(
            priority=np.empty(shape, np.float32),
            weight=np.empty(shape, np.float32),
            code=np.empty(shape, np.int64),
            visit=np.empty(shape, np.int32),
            held=np.zeros(n, np.int64),
            threshold=np.full(n, NEVER, np.float32),
            scanned=np.zeros(n, np.int64),
        )
        z = (self._z[torch.from_numpy(pixels)] * (query.a / query.beta * LOG2_E)).numpy()
        queries = Queries.of(lists.codes, z, query.a**2 / (2 * query.beta) * LOG2_E)
        scan_blocks(lists.codes, lists.first_block, queries, keys, visits, self._samples, kept)
        state = np.empty((n, 5 + 3 * self._size[2]))
        sample_sums(
            self._images,
            self._windows,
            self._size,
            self._queries[pixels],
            self._mask,
            np.float32(self._exact_scale),
            lists.codes.file,
            lists.ids_at,
            lists.codes.base,
            visits,
            kept,
            state,
        )
        return state, kept.held, int(kept.scanned.sum())
