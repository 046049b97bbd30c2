"""The near field: the patches of largest weight, retrieved for each pixel and tried for those around."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from patchindex.estimators.base import ScoreContext, index_of
from patchindex.estimators.lists import CELLS, NearLists
from patchindex.estimators.neighbours import NOTHING, NeighbourRefiner
from patchindex.exact import ScoreRequest
from patchindex.kernels.known_patches import KnownPatches
from patchindex.kernels.nearest import capacity
from patchindex.runtime import pool
from patchindex.softmax import SoftmaxState

__all__ = ["Near", "NearField"]

DEEP_CELLS = 256  # whose lists are looked at, of pixels for which more is retrieved
FEWER = (8, 4)  # times as few probes and candidates, where most of the near field is known


class Near(NamedTuple):
    """The near field of one noisy image.

    Attributes
    ----------
    members : KnownPatches
        Retrieved patches and their exact logits.
    state : SoftmaxState, shape (H * W,)
        Their sums.
    codes : int
        Codes scanned.
    heaviest : array of int64
        Keys of the heaviest members of each pixel, in order of their images, for the next step to try.
    """

    members: KnownPatches
    state: SoftmaxState
    codes: int
    heaviest: np.ndarray


class NearField:
    """What is retrieved for the pixels of a request.

    Parameters
    ----------
    data, request
        As for an estimator.
    probes : int
        Lists whose codes are scanned for a pixel.
    candidates : int
        Codes that are compared exactly, for the pixel that found them and the pixels around.
    recalled : sequence of array, optional
        For each image what `Near.heaviest` was for it a step before. It is tried again, and has most of the
        near field: an eighth of the probes, and a quarter of the candidates, are enough for what is new.
    """

    def __init__(
        self,
        data: ScoreContext,
        request: ScoreRequest,
        probes: int,
        candidates: int,
        recalled: Sequence[np.ndarray] = (),
    ) -> None:
        index = index_of(data, "auto")
        self._scale = index.scale(request.geometry.k)
        self._request = request
        self._label = None if request.label is None else index.attributes["labels"].index(request.label)
        self._threads, self._memory = torch.get_num_threads(), request.memory
        # One image at a time: products of another shape would round otherwise.
        geometry = self._scale.geometry
        self._z = torch.cat(
            [self._scale.pca.project_queries(x[None], geometry, request.a) for x in request.x]
        ).numpy()
        self._area = geometry.size[0] * geometry.size[1]
        self._refiner = NeighbourRefiner(index.pixels.numpy(), self._scale, request, self._threads)
        self._lists: dict[int, NearLists] = {}
        self.probes, self.candidates, self._recalled = probes, candidates, recalled
        fewer = FEWER if recalled else (1, 1)
        few = max(1, probes // fewer[0]), max(1, candidates // fewer[1])
        self._ids, self._codes = self._search(np.arange(len(self._z)), *few, CELLS)

    def image(self, i: int) -> Near:
        """Return the near field of image i."""
        recalled = self._recalled[i] if self._recalled else NOTHING
        mine = slice(i * self._area, (i + 1) * self._area)
        members, state, heaviest = self._refiner.run(i, self._ids[mine], np.arange(self._area), recalled)
        return Near(members, state, int(self._codes[mine].sum()), heaviest)

    def deeper(self, i: int, near: Near, pixels: np.ndarray, times: int) -> Near:
        """Return a larger near field of some pixels of image i, raster numbers; others have none in it.

        Of so many times as many probes and candidates.
        """
        more = times * self.probes, times * self.candidates
        ids, codes = self._search(i * self._area + pixels, *more, DEEP_CELLS)
        known = near.heaviest[np.isin(self._refiner.tables.pixels_of(near.heaviest), pixels)]
        members, state, heaviest = self._refiner.run(i, ids, pixels, known, around=False)
        return Near(members, state, int(codes.sum()), heaviest)

    def _search(
        self, rows: np.ndarray, probes: int, candidates: int, cells: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the patch ids of the best codes of pixels, (rows, candidates), and codes scanned."""
        request, n = self._request, len(rows)
        classes = self._scale.geometry.query_classes.reshape(-1)[rows % self._area]
        ids, codes = np.full((n, candidates), -1, np.int64), np.zeros(n, np.int64)

        def search(lists: NearLists, some: np.ndarray) -> None:
            ids[some], codes[some] = lists.search(self._z[rows[some]], probes, candidates, cells)

        # As many pixels at once as there is room for: the more, the fewer times a list is decoded.
        a_pixel = 12 * self._threads * sum(capacity(keep) for keep in (cells, probes, candidates))
        room = max(1, self._memory // 2 // a_pixel)
        workers = pool(self._threads)
        for c in np.unique(classes).tolist():
            if c not in self._lists:
                self._lists[c] = NearLists(self._scale, c, self._label, request, workers, self._threads)
            lists = self._lists[c]
            mine = np.flatnonzero(classes == c)
            parts = max(min(self._threads, len(mine)), math.ceil(len(mine) / room))
            list(workers.map(partial(search, lists), np.array_split(mine, parts)))
        return ids, codes
