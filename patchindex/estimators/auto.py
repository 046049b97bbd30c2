"""`auto`: priority sampling to a tolerance, and the exact score where that is cheaper."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from patchindex.errors import InputError
from patchindex.estimators.base import Data, Estimate, Query, scale_of
from patchindex.estimators.priority import Drawn, check_data, draw
from patchindex.exact import expected_seconds, scan
from patchindex.index.retrieval import CODES
from patchindex.patches import Geometry
from patchindex.softmax import SoftmaxState

__all__ = ["Auto"]

# Nanoseconds of one thread, from `benchmarks/estimators.py`: a list that is weighed, a code that is scanned,
# a patch that is evaluated. They decide between drawing more and an exact scan, for which their ratios to the
# exact kernel's costs matter.
LIST, CODE, PATCH = 7.5, 7.0, 250.0


@dataclass
class _Result:
    """What is known of each pixel of a batch; arrays of (pixels, ...)."""

    state: SoftmaxState
    stderr: Tensor
    captured: Tensor
    evaluated: int = 0
    codes: int = 0
    exact: int = 0

    def put(self, rows: Tensor, state: SoftmaxState, stderr: Tensor, captured: Tensor) -> None:
        for mine, new in zip(vars(self.state).values(), vars(state).values(), strict=True):
            mine[rows] = new
        self.stderr[rows], self.captured[rows] = stderr, captured
        self.evaluated += int(state.count.sum())


class Auto:
    """Estimate each pixel to a tolerance at the least cost.

    All pixels are drawn for as `priority` does, with the smallest budget. Those whose standard error is above
    the tolerance are drawn for again, with twice the budget, and so on; a pixel is computed exactly once that
    is expected to be cheaper than another draw. Where a first draw for all costs more than an exact scan, as
    with few images, there is no draw at all.

    Parameters
    ----------
    data : Data
        With an index, on the CPU.
    tolerance : float
        Of the standard error, root mean square over channels, in units of the images ([-1, 1]).
    blocks, samples : int
        The first budget: see `Priority`.

    Raises
    ------
    InputError
        When there is no index, or an option is not positive.
    """

    def __init__(self, data: Data, tolerance: float = 0.01, blocks: int = 512, samples: int = 1024) -> None:
        self._index = check_data(data, "auto", blocks, samples)
        if not 0 < tolerance < float("inf"):
            raise InputError(
                f"must be a positive number, got {tolerance}", where="tolerance", remedy="use 0.01, say"
            )
        self._data, self._tolerance = data, tolerance
        self._blocks, self._samples = blocks, samples

    def __call__(self, query: Query) -> Estimate:
        """Draw, draw more, and scan."""
        batch, channels, height, width = query.x.shape
        n = batch * height * width
        result = _Result(SoftmaxState.empty((n,), channels), torch.zeros(n), torch.zeros(n))
        geometry = self._data.geometry(scale_of(query, "auto"))
        left, blocks, samples, doublings = np.arange(n), self._blocks, self._samples, 0
        shown = 0.0

        def told(share: float) -> None:
            nonlocal shown
            shown = max(shown, 1 - len(left) / n * (1 - share))
            if query.progress is not None:
                query.progress(shown)

        while len(left):
            if self._draw_seconds(query, left, blocks, samples) > self._exact_seconds(query, geometry, left):
                self._scan(replace(query, progress=told), geometry, left, result)
                break
            # Half of the way: who knows how many have to be drawn for again.
            halfway = replace(query, progress=lambda share: told(share / 2))
            drawn = draw(self._data, halfway, left, blocks=blocks, samples=samples, salt=doublings)
            stderr = self._keep(drawn, left, result)
            left = left[(stderr > self._tolerance).numpy()]
            blocks, samples, doublings = 2 * blocks, 2 * samples, doublings + 1
            told(0.0)
        shape = (batch, height, width)
        state = result.state.reshape(shape)
        estimate = Estimate.from_state(
            state,
            stderr=result.stderr.reshape(shape),
            captured_mass=result.captured.reshape(shape),
            codes_scanned=result.codes,
            exact_pixels=result.exact,
        )
        return replace(estimate, patches_evaluated=result.evaluated)  # those of discarded draws too

    def _keep(self, drawn: Drawn, rows: np.ndarray, result: _Result) -> Tensor:
        stderr = drawn.state.stderr().square().mean(-1).sqrt().float()
        result.put(torch.from_numpy(rows), drawn.state, stderr, drawn.evaluated.float())
        result.codes += drawn.codes
        return stderr

    def _scan(self, query: Query, geometry: Geometry, rows: np.ndarray, result: _Result) -> None:
        height, width = geometry.size
        image, place = np.divmod(rows, height * width)
        state = scan(
            self._data.training,
            geometry,
            query.x,
            query.a,
            query.beta,
            label=query.label,
            pixels=[torch.from_numpy(place[image == i]) for i in range(len(query.x))],
            memory=self._data.memory,
            progress=query.progress,
        )
        result.put(torch.from_numpy(rows), state, torch.zeros(len(rows)), torch.ones(len(rows)))
        result.exact += len(rows)

    def _draw_seconds(self, query: Query, rows: np.ndarray, blocks: int, samples: int) -> float:
        scale = self._index.scale(scale_of(query, "auto"))
        label = None if query.label is None else self._index.attributes["labels"].index(query.label)
        sizes, bounds = scale.list_sizes(label), scale.lists.bounds
        codes, lists = np.add.reduceat(sizes, bounds[:-1]), np.diff(bounds)
        # A pixel meets the codes of its own class only, and a budget beyond them is not spent.
        classes = np.tile(scale.geometry.query_classes.reshape(-1), len(query.x))[rows]
        there = codes[classes]
        each = lists[classes] * LIST + np.minimum(there, blocks * CODES) * CODE
        return float((each + np.minimum(there, samples) * PATCH).sum()) * 1e-9

    def _exact_seconds(self, query: Query, geometry: Geometry, rows: np.ndarray) -> float:
        lo, hi = self._data.training.range_of(query.label)
        height, width = geometry.size
        counts = np.bincount(rows // (height * width), minlength=len(query.x))
        return expected_seconds(geometry, self._data.training.channels, hi - lo, counts.tolist())
