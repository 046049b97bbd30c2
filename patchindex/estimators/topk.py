"""`topk`: the truncated softmax over the patches that the index retrieves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from patchindex.devices import resolve_device, to_float64, warn_of_faiss
from patchindex.errors import InputError
from patchindex.estimators.base import Estimate, ScoreContext, check_between, index_of, label_index, project
from patchindex.estimators.curve import OperatingCurve
from patchindex.estimators.neighbours import NOTHING, PAIR_BYTES, NeighbourRefiner
from patchindex.exact import HeaviestPatches, ScoreRequest
from patchindex.exact.heaviest import wanted_pixels
from patchindex.geometry import gather_patches, windows
from patchindex.index import ScaleIndex
from patchindex.softmax import SoftmaxState

__all__ = ["QUALITY", "TopK", "rerank"]

QUALITY = 0.98  # by default, with an operating curve
PROBES = 32  # without an operating curve
IMAGES_PER_SEARCH = 4
RERANK_BYTES = 32 << 20  # for copies of patches, on devices other than the CPU
RESULT_BYTES = 48  # that a search and its results take, per pixel and candidate


class TopK:
    """Softmax over the `candidates` patches nearest in the index, re-ranked exactly.

    The search compares codes, which are compressed patches. The logits of the candidates are computed from
    the stored uint8 images. All other patches are left out, so the mean is biased where the softmax is broad:
    at high noise, and more so for larger data sets. `captured_mass` estimates the share of the softmax that
    the candidates hold.

    Parameters
    ----------
    candidates : int
        Patches kept per pixel.
    probes : int, optional
        Inverted lists scanned per pixel. By default, the fewest lists that reach `quality` on the operating
        curve that `tune` measured, or 32 lists without a curve.
    quality : float, optional
        The wanted quality, in (0, 1], by default 0.98: the weight of the candidates, divided by the weight of
        the equally many heaviest patches, averaged over pixels. The curve is measured over all labels; with
        one label the quality is lower. It chooses `probes`, so give one of the two. It needs a curve.

    Raises
    ------
    InputError
        When there is no index, an option is below 1 or out of its range, or `quality` is given with `probes`;
        in a call, when `quality` is given and the scale has no operating curve. A DeviceError when the index
        is on a GPU, and the installed FAISS cannot search there.
    """

    searches = True
    takes_shards = False

    def __init__(
        self,
        context: ScoreContext,
        candidates: int = 256,
        probes: int | None = None,
        quality: float | None = None,
    ) -> None:
        self._context = context
        self._index = index_of(context, "topk", candidates=candidates, probes=probes)
        resolve_device(self._index.device, needs_faiss=True)
        warn_of_faiss(context.device)
        if quality is not None:
            check_between("quality", quality, 0, 1, "use 0.98, for example")
            if probes is not None:
                raise InputError(
                    "chooses the probes, which are given", parameter="quality", remedy="give one of the two"
                )
        self._candidates, self._probes, self._quality = candidates, probes, quality

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Search, re-rank and sum, a few images at a time."""
        parts, batch = [], len(request.x)
        for first in range(0, batch, IMAGES_PER_SEARCH):
            last = min(first + IMAGES_PER_SEARCH, batch)
            parts.append(self._estimate(request.select(slice(first, last))))
            request.progress("posterior mean", last, batch)
        return Estimate.cat(parts)

    def heaviest(self, request: ScoreRequest, top: int) -> HeaviestPatches:
        """Return the heaviest candidates, with their weights among all patches.

        The captured mass gives the sum of all weights; its error is unknown.
        """
        scale, pixels = self._index.scale(request.geometry.k), self._index.pixels_on(self._context.device)
        step = max(1, request.memory // (RESULT_BYTES * self._kept(request)))
        parts, done, number = [], 0, len(wanted_pixels(request)[0])
        for first in range(0, len(request.x), IMAGES_PER_SEARCH):
            some = request.select(slice(first, first + IMAGES_PER_SEARCH))
            image, place = wanted_pixels(some)
            wanted = image * some.x[0, 0].numel() + place
            z_of_rows, rows = project(scale, some)[wanted], wanted.cpu().numpy()
            for start in range(0, len(rows), step):
                mine, z = rows[start : start + step], z_of_rows[start : start + step]
                ids, distances, _ = self.search(some, z, mine)
                captured = self._captured(some, z, mine, ids, distances)
                parts.append(_heaviest_of(pixels, some, mine, ids, captured, top))
                done += len(mine)
                request.progress("heaviest patches", done, number)
        return HeaviestPatches.cat(parts)

    def _estimate(self, request: ScoreRequest) -> Estimate:
        scale = self._index.scale(request.geometry.k)
        z = project(scale, request)
        step = max(1, request.memory // (RESULT_BYTES * self._kept(request)))
        states, captured, codes = [], [], 0
        for first in range(0, len(z), step):
            rows = np.arange(first, min(first + step, len(z)))
            ids, distances, scanned = self.search(request, z[first : first + step], rows)
            states.append(rerank(self._context, request, rows, ids))
            captured.append(self._captured(request, z[first : first + step], rows, ids, distances))
            codes += scanned
        shape = (len(request.x), *request.geometry.size)
        state = SoftmaxState.cat(states).reshape(shape)
        return Estimate.from_state(
            state,
            stderr=torch.full_like(state.weight, torch.nan),
            captured_mass=torch.cat(captured).reshape(shape),
            method="topk",
            codes_scanned=codes,
        )

    def search(
        self, request: ScoreRequest, z: Tensor, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Find the codes nearest to the projections z (n, dims) of the pixels `rows` of the batch.

        Return the patch ids (n, candidates), -1 where no patch was found; their distances, of the same shape;
        and the number of codes scanned.
        """
        scale = self._index.scale(request.geometry.k)
        # Codes are of patches P, not of a P: |W - a P| = a |W / a - P|.
        vectors, classes = (z / request.a).cpu().numpy(), _classes(request, rows)
        probes, candidates = self._probes_at(scale, request.beta), self._kept(request)
        keys = scale.lists.nearest(vectors, classes, probes)
        images = None if request.label is None else request.image_range
        distances, ids = scale.search(vectors, keys, candidates, images)
        sizes = scale.list_sizes(label_index(self._index, request))
        codes = _codes(keys, sizes)
        # The nearest lists may hold no patch of the label: a pixel without candidates scans more lists.
        empty = np.flatnonzero(ids[:, 0] < 0)
        most = scale.most_probes
        while len(empty) and probes < most:
            probes = min(2 * probes, most)
            keys = scale.lists.nearest(vectors[empty], classes[empty], probes)
            distances[empty], ids[empty] = scale.search(vectors[empty], keys, candidates, images)
            codes += _codes(keys, sizes)
            empty = empty[ids[empty, 0] < 0]
        return ids, distances, codes

    def _captured(
        self, request: ScoreRequest, z: Tensor, rows: np.ndarray, ids: np.ndarray, distances: np.ndarray
    ) -> Tensor:
        """Estimate the captured mass: the share of the softmax weight that the patches `ids` hold."""
        scale, label = self._index.scale(request.geometry.k), label_index(self._index, request)
        a, beta, classes = request.a, request.beta, _classes(request, rows)
        there = torch.from_numpy(ids).to(z.device) >= 0
        # Codes lack the part of a patch outside the PCA. `kept` and `rest` are both computed from codes, so
        # that this part cancels in their difference.
        approximate = torch.from_numpy(distances).to(z.device) * (-a * a / (2 * beta))
        no_centres = torch.empty(approximate.shape[1], 0, dtype=torch.float32, device=z.device)
        kept = SoftmaxState.of(approximate, no_centres, valid=there).log_weight()
        last = torch.where(there, approximate, torch.inf).amin(1)
        rest = scale.moments.log_rest(z, classes, a, beta, last, label)
        captured = torch.sigmoid(kept - rest)
        # A pixel that found all patches of its class left nothing out.
        patches_of_class = np.add.reduceat(scale.list_sizes(label), scale.lists.bounds[:-1])
        everything = patches_of_class[classes] <= (ids >= 0).sum(1)
        captured[torch.from_numpy(everything).to(captured.device)] = 1
        return captured

    def _probes_at(self, scale: ScaleIndex, beta: float) -> int:
        curve = OperatingCurve.of(scale) if self._probes is None else None
        if curve is not None:
            chosen = curve.search(beta, self._candidates, self._quality or QUALITY).probes
        elif self._quality is None:
            chosen = self._probes or PROBES
        else:
            raise InputError(
                f"scale {scale.geometry.k} of the store has no operating curve",
                parameter="quality",
                remedy="tune the store with patchindex tune, or give probes instead",
            )
        return min(chosen, len(scale.lists.centroids))

    def _kept(self, request: ScoreRequest) -> int:
        lo, hi = request.image_range
        return min(self._candidates, (hi - lo) * request.geometry.patches_per_image)


def _classes(request: ScoreRequest, rows: np.ndarray) -> np.ndarray:
    """Return the classes of pixels: a pixel is compared with the patches of its class."""
    return request.geometry.query_classes.reshape(-1)[rows % request.x[0, 0].numel()]


def _codes(keys: np.ndarray, sizes: np.ndarray) -> int:
    """Return the number of codes in the lists `keys`; -1 stands for no list."""
    return int(np.where(keys >= 0, sizes[keys], 0).sum())


def rerank(context: ScoreContext, request: ScoreRequest, rows: np.ndarray, ids: np.ndarray) -> SoftmaxState:
    """Return the softmax, (n,), over the patches `ids` (n, candidates), from images and not from codes.

    An id of -1 stands for no patch. `rows` (n,) are raster numbers of pixels in the whole batch, image after
    image.
    """
    index = index_of(context, "topk")
    if context.device.type != "cpu":
        return _rerank_by_torch(index.pixels_on(context.device), request, rows, ids)
    refiner = NeighbourRefiner(index.pixels.numpy(), request)
    images, places = np.divmod(rows, request.x[0, 0].numel())
    step = max(1, request.memory // (PAIR_BYTES * ids.shape[1]))
    states = []
    for i in range(len(request.x)):
        mine_of_image = np.flatnonzero(images == i)
        for first in range(0, len(mine_of_image), step):
            some = mine_of_image[first : first + step]
            _, state, _ = refiner.run(i, ids[some], places[some], NOTHING, around=False)
            states.append(state[torch.from_numpy(places[some])])
    # The states lie image after image: bring them into the order of `rows`.
    order = np.argsort(images, kind="stable")
    return SoftmaxState.cat(states)[torch.from_numpy(np.argsort(order))]


def _rerank_by_torch(
    pixels: Tensor, request: ScoreRequest, rows: np.ndarray, ids: np.ndarray
) -> SoftmaxState:
    """Do as `rerank` with copies of the patches, on the device of the images `pixels` (N, H, W, C)."""
    parts = _compare(pixels, request, rows, ids)
    return SoftmaxState.cat([
        SoftmaxState.of(logits, centres, valid=part >= 0) for part, logits, centres in parts
    ])  # fmt: skip


def _heaviest_of(
    pixels: Tensor, request: ScoreRequest, rows: np.ndarray, ids: np.ndarray, captured: Tensor, top: int
) -> HeaviestPatches:
    """Return the heaviest of the candidates `ids`, which hold the share `captured` of all weights."""
    parts = list(_compare(pixels, request, rows, ids))
    logits = to_float64(torch.cat([part[1] for part in parts]))
    found = torch.cat([part[0] for part in parts]).to(logits.device)
    captured = to_float64(captured)
    logits = logits.masked_fill(found < 0, -torch.inf)
    total = logits.logsumexp(1) - captured.log()
    logits, order = logits.sort(dim=1, descending=True, stable=True)
    weight, found = (logits - total[:, None]).exp(), found.gather(1, order)
    image, y, x = request.geometry.position(found)
    empty = torch.full((len(found), max(0, top - found.shape[1])), -1, device=found.device)
    image, place = (
        torch.cat([part.masked_fill(found < 0, -1), empty], 1)[:, :top]
        for part in (image, y * request.geometry.size[1] + x)
    )
    none = torch.zeros_like(empty, dtype=weight.dtype)
    weight = torch.cat([weight, none], 1)[:, :top]
    logits = torch.cat([logits, none - torch.inf], 1)[:, :top]
    unknown = torch.full_like(total, torch.nan)
    return HeaviestPatches(
        image=image,
        place=place,
        logit=logits,
        weight=weight,
        rest=(1 - weight.sum(1)).clamp_min(0),
        ess=unknown,
        entropy=unknown,
        captured_mass=captured,
        relative_error=torch.where(captured == 1, 0.0, unknown),
        method="topk",
    )


def _compare(
    pixels: Tensor, request: ScoreRequest, rows: np.ndarray, ids: np.ndarray
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield patch ids (n, candidates), logits and centres of some rows after the other."""
    geometry, a, beta = request.geometry, request.a, request.beta
    mine, found = (torch.from_numpy(array).to(pixels.device) for array in (rows, ids))
    by_pixel = windows(request.x, geometry, query=True)
    # Per patch: uint8 and float pixels, a scaled copy, and 64-bit indices.
    per_query = ids.shape[1] * geometry.k**2 * (13 * request.x.shape[1] + 16)
    step = max(1, min(request.memory, RERANK_BYTES) // per_query)
    (height, width), middle = geometry.size, geometry.k // 2
    for part, some in zip(found.split(step), mine.split(step), strict=True):
        patches = gather_patches(pixels, geometry, part.clamp_min(0))
        centres = patches[:, :, middle, middle].clone()
        image, place = some // (height * width), some % (height * width)
        window = by_pixel[image, :, place // width, place % width].permute(0, 2, 3, 1)
        difference = patches.mul_(a).sub_(window.unsqueeze(1)).flatten(2)
        yield part, torch.linalg.vector_norm(difference, dim=-1).square() / (-2 * beta), centres
