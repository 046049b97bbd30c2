"""The mosaic of a sample: each pixel by the training image and offset that it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from patchindex.checks import check_least, is_real
from patchindex.denoisers import Attributions, ScoreMachine
from patchindex.errors import InputError
from patchindex.exact import ScoreRequest, heaviest
from patchindex.explain.steps import one_image
from patchindex.geometry import Geometry
from patchindex.images.by_label import TrainingImages, as_tensor, to_unit
from patchindex.runtime import Progress, as_progress, full_precision, no_progress, part_of, plain_state

__all__ = ["TOLERANCE", "Mosaic", "check_tolerance", "mosaic", "require_sparse"]

SINGLE = 1.5  # effective sample size below which one patch has at least 79 % of the weight
TOLERANCE = 0.05  # in [-1, 1], about 6 grey levels: less is hard to see
LEAST_SEGMENT = 4  # pixels of a segment that is counted as a piece of an image
NOISE = 1e-4  # of the search for nearest patches: their order does not depend on the noise variance, and with
# a small one most patches are too light to be added up


@plain_state()
def mosaic(
    machine: ScoreMachine,
    x: Tensor,
    t: float,
    *,
    image: Tensor | None = None,
    k: int | None = None,
    label: int | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    number: int = 0,
    progress: Progress | None = None,
) -> Mosaic:
    """Find the training patch that each pixel of a sample came from, at a step of its trajectory.

    The patch of a pixel is the heaviest in the softmax of the machine at (x, t). A *segment* is a set of
    pixels, connected along their edges, whose patches lie at one offset in one training image: a piece that
    was copied as a whole.

    The paper's mosaic property says that at low noise each pixel is the centre of the training patch that is
    nearest to its own neighbourhood. It is checked by exact search: for each pixel of `image`, the patch P
    of its class with the least `|W_k(image, p) - P|`, over all training images.

    Parameters
    ----------
    machine : ScoreMachine
        Its estimator decides how the heaviest patches are found; the nearest patches are always exact.
    x : Tensor, shape (1, C, H, W)
        The noisy image before the step, usually the last step.
    t : float
        Time of the step, in (0, 1).
    image : Tensor, shape (1, C, H, W), optional
        The sample in [-1, 1], such as `result.images[3:4]`. By default the posterior mean at (x, t), which is
        the image that DDIM returns after its last step.
    k : int, optional
        Locality scale, in place of the schedule's.
    label : int, optional
        In place of the machine's own label.
    tolerance : float
        Largest difference of a pixel and a centre, over channels, that counts as equal: at least 0, in units
        of [-1, 1].
    seed, number : int
        Seed and number of the image, for estimators that draw random numbers.
    progress : Progress, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    Mosaic

    Raises
    ------
    InputError
        As for `ScoreMachine.explain`, when `x` or `image` is not one image, when `tolerance` is not a number
        from 0 on, or when scipy is not installed.

    Examples
    --------
    >>> import torch
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> x = m.training.source.floats(7)
    >>> found = mosaic(m, x, 0.02)
    >>> found.summary()["source_images"], found.summary()["segments"], int(found.image[0, 0])
    (1, 1, 7)
    """
    require_sparse()  # without scipy, fail before any work
    check_least(seed=(seed, 0), number=(number, 0))
    check_tolerance(tolerance)
    progress = as_progress(progress)
    x = one_image(machine, x, "x")
    image = None if image is None else one_image(machine, image, "image")
    label = machine.label if label is None else label
    k = machine.scale_at(t, k)
    common: dict[str, Any] = {"k": k, "label": label, "seed": seed, "image_ids": [number]}
    found = machine.explain(x, t, top=1, progress=part_of(progress, "mosaic", 0.0, 0.5), **common)
    sample = machine.posterior_mean(x, t, **common).mean if image is None else image
    return mosaic_of(
        machine,
        found,
        sample,
        k=k,
        label=label,
        tolerance=tolerance,
        t=t,
        progress=part_of(progress, "mosaic", 0.5, 1.0),
    )


@plain_state()
def mosaic_of(
    machine: ScoreMachine,
    found: Attributions,
    sample: Tensor,
    *,
    t: float,
    k: int | None,
    label: int | None,
    tolerance: float = TOLERANCE,
    progress: Progress = no_progress,
) -> Mosaic:
    """Return the mosaic of a sample (1, C, H, W), given the patches of all of its pixels."""
    size = machine.training.size
    image, y, x_, of_label, weight = (
        getattr(found, name)[:, 0].reshape(size) for name in ("image", "y", "x", "label", "weight")
    )
    rows, columns = np.indices(size)
    offset_y, offset_x = y - rows, x_ - columns
    if machine.train_windows == "wrapped":  # such an image has no borders
        offset_y, offset_x = offset_y % size[0], offset_x % size[1]
    nearest = _nearest(machine, sample, k, label, progress)
    difference = (sample[0].cpu() - nearest["centres"]).abs().amax(0).numpy()
    return Mosaic(
        sample=sample[0].cpu(),
        centres=_centres(machine.training, image, y, x_),
        image=image,
        y=y,
        x=x_,
        label=of_label,
        weight=weight,
        ess=found.ess.reshape(size),
        entropy=found.entropy.reshape(size),
        segment=segments(np.stack([image, offset_y, offset_x])),
        nearest_image=nearest["image"],
        nearest_y=nearest["y"],
        nearest_x=nearest["x"],
        nearest_distance=nearest["distance"],
        difference=difference,
        settings={
            "t": t,
            "k": k,
            "label": label,
            "machine": machine.machine,
            "train_windows": machine.train_windows,
            "method": found.method,
            "tolerance": tolerance,
        },
    )


@dataclass(frozen=True, repr=False)
class Mosaic:
    """The training patches that the pixels of a sample came from, made by `mosaic`.

    Attributes
    ----------
    sample : Tensor, shape (C, H, W)
        The image, in [-1, 1].
    centres : Tensor, shape (C, H, W)
        The centre of each pixel's heaviest patch: the sample if each pixel were copied from one patch.
    image, y, x, label : numpy.ndarray, shape (H, W), int64
        The heaviest patch of each pixel: number of the training image in the source, position of the centre,
        and label (-1 without labels).
    weight : numpy.ndarray, shape (H, W), float64
        Weight of the heaviest patch in the softmax over all patches.
    ess, entropy : numpy.ndarray, shape (H, W), float64
        Effective sample size, and entropy in nats, of the softmax; NaN where the method does not give it.
    segment : numpy.ndarray, shape (H, W), int64
        Number of each pixel's segment: 0 is the largest segment.
    nearest_image, nearest_y, nearest_x : numpy.ndarray, shape (H, W), int64
        The training patch that is nearest to the neighbourhood of each pixel in the sample, by exact search.
    nearest_distance : numpy.ndarray, shape (H, W), float64
        Root mean square difference to this patch, per pixel and channel of the window.
    difference : numpy.ndarray, shape (H, W), float32
        Difference of the pixel and the centre of this patch, the largest over channels.
    settings : dict
        Time `t`, scale `k`, `label`, machine, `method` of the heaviest patches, and `tolerance`.
    """

    sample: Tensor
    centres: Tensor
    image: np.ndarray
    y: np.ndarray
    x: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    ess: np.ndarray
    entropy: np.ndarray
    segment: np.ndarray
    nearest_image: np.ndarray
    nearest_y: np.ndarray
    nearest_x: np.ndarray
    nearest_distance: np.ndarray
    difference: np.ndarray
    settings: dict[str, Any] = field()

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the mosaic.

        `source_images`: training images that at least one pixel came from. `effective_images`: the
        exponential of the entropy of their shares of the pixels. `segments`, `segments_of_4`,
        `largest_segment`: number of segments, of those with at least four pixels, and pixels of the largest.
        `single`: share of pixels with an effective sample size below 1.5, where one patch decides; None if
        unknown. `mosaic_share`: share of pixels that equal the centre of the nearest training patch, to
        `tolerance`. `same_patch`: share of pixels whose nearest patch is also their heaviest patch.
        `nearest_distance`: median over pixels.
        """
        _, counts = np.unique(self.image, return_counts=True)
        shares = counts / counts.sum()
        sizes = np.bincount(self.segment.ravel())
        same = (self.image == self.nearest_image) & (self.y == self.nearest_y) & (self.x == self.nearest_x)
        return {
            **self.settings,
            "pixels": self.image.size,
            "source_images": len(counts),
            "effective_images": float(np.exp(-(shares * np.log(shares)).sum())),
            "segments": len(sizes),
            f"segments_of_{LEAST_SEGMENT}": int((sizes >= LEAST_SEGMENT).sum()),
            "largest_segment": int(sizes.max()),
            "single": None if np.isnan(self.ess).any() else float((self.ess < SINGLE).mean()),
            "mosaic_share": float((self.difference <= self.settings["tolerance"]).mean()),
            "same_patch": float(same.mean()),
            "nearest_distance": float(np.median(self.nearest_distance)),
        }

    def __repr__(self) -> str:
        numbers = self.summary()
        height, width = self.image.shape
        return (
            f"Mosaic({height} x {width}: {numbers['segments']} segments of {numbers['source_images']} "
            f"training images; {numbers['mosaic_share']:.1%} of pixels are centres of their nearest patch)"
        )


def segments(keys: np.ndarray) -> np.ndarray:
    """Return the segment of each pixel for keys (n, H, W): int64 (H, W), 0 for the largest segment.

    Pixels are connected along edges. Among segments of equal size, the first in raster order comes first.
    """
    sparse = require_sparse()
    size = keys.shape[1:]
    pixel = np.arange(size[0] * size[1]).reshape(size)
    right = (keys[:, :, 1:] == keys[:, :, :-1]).all(0)
    down = (keys[:, 1:] == keys[:, :-1]).all(0)
    one = np.concatenate([pixel[:, :-1][right], pixel[:-1][down]])
    two = np.concatenate([pixel[:, 1:][right], pixel[1:][down]])
    graph = sparse.coo_array((np.ones(len(one), bool), (one, two)), shape=(pixel.size, pixel.size))
    _, found = sparse.csgraph.connected_components(graph, directed=False)
    _, first, inverse, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    numbered: np.ndarray = rank[inverse].reshape(size)
    return numbered


def _nearest(
    machine: ScoreMachine, sample: Tensor, k: int | None, label: int | None, progress: Progress
) -> dict[str, Any]:
    """Return the training patch nearest to each pixel's neighbourhood in the sample, over all patches."""
    training, size = machine.training, machine.training.size
    geometry = Geometry.of(machine.machine, k, size, machine.train_windows)
    a = (1 - NOISE) ** 0.5
    # |a W - a P|^2 is smallest where |W - P|^2 is, and padding stays zero.
    request = ScoreRequest(training, geometry, a * sample, NOISE, label=label, progress=progress)
    with full_precision():
        found = heaviest(request, 1)
    number, place = found.image[:, 0].cpu().numpy(), found.place[:, 0].cpu().numpy()
    image = training.source_ids[number].reshape(size)
    y, x = (part.reshape(size) for part in np.divmod(place, size[1]))
    numbers = sample.shape[1] * min(geometry.k**2, size[0] * size[1])
    squares = found.logit[:, 0].cpu().numpy().clip(max=0) * (-2 * NOISE) / a**2
    return {
        "image": image,
        "y": y,
        "x": x,
        "distance": np.sqrt(squares / numbers).reshape(size),
        "centres": _centres(training, image, y, x),
    }


def _centres(training: TrainingImages, image: np.ndarray, y: np.ndarray, x: np.ndarray) -> Tensor:
    """Return the pixels (C, H, W) at positions of training images, in [-1, 1]."""
    used, which = np.unique(training.numbers_of(image.ravel()), return_inverse=True)
    pixels = training.read_some(used)[which.reshape(-1), y.ravel(), x.ravel()]
    return to_unit(as_tensor(pixels)).T.reshape(-1, *image.shape)


def check_tolerance(tolerance: object, parameter: str = "tolerance") -> None:
    """Refuse a tolerance that is no finite number from 0 on."""
    if not is_real(tolerance) or tolerance < 0:
        raise InputError(
            f"must be at least 0, got {tolerance!r}",
            parameter=parameter,
            remedy=f"use {TOLERANCE:g}",
        )


def require_sparse() -> ModuleType:
    """Return `scipy.sparse`, or raise an InputError if scipy is not installed."""
    try:
        import scipy.sparse
        import scipy.sparse.csgraph
    except ImportError:
        remedy = "pip install 'patchindex[studies]'"
        raise InputError("scipy is not installed", where="mosaic", remedy=remedy) from None
    module: ModuleType = scipy.sparse
    return module
