"""`topk`: the truncated softmax over the patches that the index retrieves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patchindex.estimators.base import Estimate, ScoreContext, check_between, index_of
from patchindex.estimators.curve import OperatingCurve
from patchindex.estimators.neighbours import NOTHING, NeighbourRefiner
from patchindex.exact import ScoreRequest
from patchindex.geometry import Geometry, gather_patches, query_windows
from patchindex.index import ScaleIndex
from patchindex.softmax import SoftmaxState

__all__ = ["TopK", "rerank"]

PROBES = 32  # where nothing was measured
IMAGES_A_SEARCH = 4
RERANK_BYTES = 32 << 20  # of copies of patches, on other devices than the CPU
RESULT_BYTES = 48  # that a candidate of a pixel takes as a result of the search, and on its way through it
PAIR_BYTES = 64  # that a pixel and a patch take while they are compared, on the CPU


class TopK:
    """Softmax over the `candidates` patches nearest in the index, re-ranked exactly.

    The candidates are found by their codes; their logits are computed from the stored uint8 images. What the
    other patches hold is left out, so the mean is biased where the softmax is broad: at high noise, and the
    more the larger the data set. `captured_mass` estimates what was kept.

    Parameters
    ----------
    data : ScoreContext
        With an index.
    candidates : int
        Patches kept a pixel.
    probes : int, optional
        Inverted lists that are looked into. By default as many as the store's operating curve says are enough
        for `quality`, or 32 where it has none.
    quality : float
        Share, in (0, 1], of what as many of the heaviest patches weigh, that those found are to have; on
        average over pixels. Measured over all labels: with one it is less.

    Raises
    ------
    InputError
        When there is no index, or an option is below 1 or out of its range.
    """

    def __init__(
        self, data: ScoreContext, candidates: int = 256, probes: int | None = None, quality: float = 0.98
    ) -> None:
        self._data = data
        self._index = index_of(data, "topk", candidates=candidates, probes=probes)
        check_between("quality", quality, 0, 1, "use 0.98, say")
        self._candidates, self._probes, self._quality = candidates, probes, quality

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Search, re-rank and sum, a few images at a time."""
        scale = self._index.scale(request.geometry.k)
        parts, batch = [], len(request.x)
        for first in range(0, batch, IMAGES_A_SEARCH):
            last = min(first + IMAGES_A_SEARCH, batch)
            parts.append(self._estimate(request.select(slice(first, last)), scale))
            request.progress("posterior mean", last, batch)
        return Estimate.cat(parts)

    def _probes_at(self, scale: ScaleIndex, beta: float) -> int:
        curve = OperatingCurve.of(scale) if self._probes is None else None
        if curve is None:
            return self._probes or PROBES
        return curve.search(beta, self._candidates, self._quality).probes

    def _estimate(self, request: ScoreRequest, scale: ScaleIndex) -> Estimate:
        lo, hi = request.image_range
        candidates = min(self._candidates, (hi - lo) * scale.geometry.patches_per_image)
        # One image at a time: products of another shape would round otherwise.
        z = torch.cat([scale.pca.project_queries(one[None], scale.geometry, request.a) for one in request.x])
        step = max(1, request.memory // (RESULT_BYTES * candidates))
        parts = [
            self._pixels(np.arange(first, min(first + step, len(z))), z, request, scale, candidates)
            for first in range(0, len(z), step)
        ]
        shape = (len(request.x), *scale.geometry.size)
        state = SoftmaxState.cat([state for state, _, _ in parts]).reshape(shape)
        return Estimate.from_state(
            state,
            stderr=torch.full_like(state.weight, torch.nan),
            captured_mass=torch.cat([captured for _, captured, _ in parts]).reshape(shape),
            codes_scanned=sum(scanned for _, _, scanned in parts),
        )

    def _pixels(
        self, rows: np.ndarray, z: Tensor, request: ScoreRequest, scale: ScaleIndex, candidates: int
    ) -> tuple[SoftmaxState, Tensor, int]:
        """Return states of some pixels of a request, their captured mass, and codes scanned."""
        a, beta, label = request.a, request.beta, request.label
        classes = scale.geometry.query_classes.reshape(-1)[rows % request.x[0, 0].numel()]
        z = z[torch.from_numpy(rows).to(z.device)]
        vectors = (z / a).cpu().numpy()
        probes = min(self._probes_at(scale, beta), len(scale.lists.centroids))
        keys = scale.lists.nearest(vectors, classes, probes)
        images = None if label is None else request.image_range
        distances, found = scale.search(vectors, keys, candidates, images)
        label_index = None if label is None else self._index.attributes["labels"].index(label)
        sizes = scale.list_sizes(label_index)
        scanned = _codes(keys, sizes)
        # The nearest lists may hold nothing, of this label above all: such pixels look into more of them.
        empty = np.flatnonzero(found[:, 0] < 0)
        most = scale.most_probes
        while len(empty) and probes < most:
            probes = min(2 * probes, most)
            keys = scale.lists.nearest(vectors[empty], classes[empty], probes)
            distances[empty], found[empty] = scale.search(vectors[empty], keys, candidates, images)
            scanned += _codes(keys, sizes)
            empty = empty[found[empty, 0] < 0]
        ids = torch.from_numpy(found).to(z.device)
        state = rerank(self._data, scale, request, rows, found)

        # Both sides of the captured mass are taken from codes, so that what the PCA leaves out cancels.
        approximate = torch.from_numpy(distances).to(z.device) * (-a * a / (2 * beta))
        no_centres = torch.empty(candidates, 0, dtype=torch.float32, device=z.device)
        kept = SoftmaxState.of(approximate, no_centres, valid=ids >= 0).log_weight()
        last = torch.where(ids >= 0, approximate, torch.inf).amin(1)
        rest = scale.moments.log_rest(z, classes, a, beta, last, label_index)
        everything = _patches_of_class(scale, label_index)[classes] <= (found >= 0).sum(1)
        captured = torch.sigmoid(kept - rest)
        captured[torch.from_numpy(everything).to(z.device)] = 1
        return state, captured, scanned


def _codes(keys: np.ndarray, sizes: np.ndarray) -> int:
    """How many codes the lists `keys` hold, -1 being none."""
    return int(np.where(keys >= 0, sizes[keys], 0).sum())


def _patches_of_class(scale: ScaleIndex, label_index: int | None) -> np.ndarray:
    """How many patches each position class has, shape (n_classes,)."""
    return np.add.reduceat(scale.list_sizes(label_index), scale.lists.bounds[:-1])


def rerank(
    data: ScoreContext, scale: ScaleIndex, request: ScoreRequest, rows: np.ndarray, ids: np.ndarray
) -> SoftmaxState:
    """Return the states of some pixels' patches, their logits computed from the images.

    Parameters
    ----------
    data, request
        As for an estimator.
    scale : ScaleIndex
    rows : array of int, shape (n,)
        Raster numbers of pixels in the whole batch, image after image.
    ids : array of int64, shape (n, candidates)
        Patches of each; -1 for none.

    Returns
    -------
    SoftmaxState, shape (n,)
    """
    index = index_of(data, "topk")
    if data.device.type != "cpu":
        mine, found = (torch.from_numpy(array).to(data.device) for array in (rows, ids))
        windows, pixels = query_windows(request.x, scale.geometry)[mine], index.pixels_on(data.device)
        return _rerank_by_torch(
            pixels, scale.geometry, windows, found, request.a, request.beta, request.memory
        )
    refiner = NeighbourRefiner(index.pixels.numpy(), scale, request, torch.get_num_threads())
    images, places = np.divmod(rows, request.x[0, 0].numel())
    step = max(1, request.memory // (PAIR_BYTES * ids.shape[1]))
    states = []
    for i in range(len(request.x)):
        mine_of_image = np.flatnonzero(images == i)
        for first in range(0, len(mine_of_image), step):
            some = mine_of_image[first : first + step]
            _, state, _ = refiner.run(i, ids[some], places[some], NOTHING, around=False)
            states.append(state[torch.from_numpy(places[some])])
    order = np.argsort(images, kind="stable")
    return SoftmaxState.cat(states)[torch.from_numpy(np.argsort(order))]


def _rerank_by_torch(
    pixels: Tensor, geometry: Geometry, windows: Tensor, ids: Tensor, a: float, beta: float, memory: int
) -> SoftmaxState:
    """Do the same on any device, with copies of the patches.

    `pixels` (N, H, W, C) uint8, `windows` (n, k, k, C) and `ids` (n, candidates) are on the device.
    """
    # A patch in flight: uint8 and float pixels, a scaled copy, and 64-bit indices on the way.
    per_query = ids.shape[1] * geometry.k**2 * (13 * windows.shape[3] + 16)
    step = max(1, min(memory, RERANK_BYTES) // per_query)
    middle = geometry.k // 2
    states = []
    for part, window in zip(ids.split(step), windows.split(step), strict=True):
        valid = part >= 0
        patches = gather_patches(pixels, geometry, part.clamp_min(0))
        centres = patches[:, :, middle, middle].clone()
        difference = patches.mul_(a).sub_(window.unsqueeze(1)).flatten(2)
        logits = torch.linalg.vector_norm(difference, dim=-1).square() / (-2 * beta)
        states.append(SoftmaxState.of(logits, centres, valid=valid))
    return SoftmaxState.cat(states)
