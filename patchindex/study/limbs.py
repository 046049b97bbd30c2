"""`count_features`: counts of limbs, strokes or holes in drawn images, for locality schedules that differ.

Locality lets distant parts of an image disagree: no pixel sees how many limbs the figure has already. This
study draws images from the same noise with denoisers that differ in the locality at some times, and counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchindex.checks import check_least
from patchindex.denoisers import Denoiser
from patchindex.errors import InputError
from patchindex.images import ImagesLike, open_images
from patchindex.runtime import Progress, as_progress, part_of, plain_state
from patchindex.sampling import Sampling, starting_noise
from patchindex.store.text_files import write_csv, write_json
from patchindex.study.bootstrap import bootstrap_interval
from patchindex.study.limb_plots import plot_counts, plot_examples
from patchindex.study.shown import ShownRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["REFERENCE", "FeatureCounts", "count_features", "replace_scales"]

Counter = Callable[[Tensor], np.ndarray]

REFERENCE = "training images"
RESAMPLES = 2000  # bootstrap: the ends of an interval are then right within about 0.01 of its width


def replace_scales(scales: Sequence[int], k: int, *, low: float = 0.0, high: float = 1.0) -> list[int]:
    """Return locality scales by step with scale k at the times t = i / n in [low, high), i = 1, ..., n - 1.

    Parameters
    ----------
    scales : sequence of n int
        Scale at t = i / n for entry i, as `LocalitySchedule.of` takes a list; the first entry is unused.
    k : int
        Scale to use at these times.
    low, high : float
        Times in [0, 1].

    Examples
    --------
    >>> replace_scales([3, 3, 5, 7, 9], 1, high=0.5)  # late in sampling: low noise
    [1, 1, 1, 7, 9]
    >>> replace_scales([3, 3, 5, 7, 9], 15, low=0.5)  # early: high noise
    [3, 3, 5, 15, 15]
    """
    n = len(scales)
    return [k if low <= i / n < high else int(each) for i, each in enumerate(scales)]


@plain_state()
def count_features(
    denoisers: Mapping[str, Denoiser],
    counter: Counter,
    n: int = 64,
    *,
    reference: ImagesLike | None = None,
    expected: int | None = None,
    steps: int = 20,
    seed: int = 0,
    label: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> FeatureCounts:
    """Draw images with several denoisers from the same noise, and count a feature in each image.

    Parameters
    ----------
    denoisers : mapping of str to Denoiser
        Denoisers by name, of images of one shape, for example score machines with different locality
        schedules.
    counter : callable
        Returns one whole number per image for images (n, C, H, W) in [-1, 1]: `count_limbs`, for example. It
        is tried on one image before images are drawn, the first of the reference or noise.
    n : int
        Images per denoiser.
    reference : images, optional
        Images to count the feature in for comparison, as for `open_images`: the training images.
    expected : int, optional
        The right count; by default the commonest count of the reference.
    steps, seed, label, batch_size, progress
        As for `sample`.

    Returns
    -------
    FeatureCounts

    Raises
    ------
    InputError
        When there are no denoisers, their shapes differ, a denoiser is called "training images", the counter
        does not return one number per image, or neither `reference` nor `expected` is given.

    Examples
    --------
    >>> from patchindex.denoisers import ScoreMachine
    >>> from patchindex.study.counters import count_limbs, draw_figures
    >>> figures = draw_figures(8)
    >>> machines = {f"k = {k}": ScoreMachine(figures, machine="LS", locality=[k] * 3) for k in (3, 31)}
    >>> found = count_features(machines, count_limbs, n=2, steps=3, reference=figures)
    >>> [(row["name"], row["images"]) for row in found.summary()]
    [('training images', 8), ('k = 3', 2), ('k = 31', 2)]
    """
    progress = as_progress(progress)
    check_least(n=(n, 1), batch_size=(batch_size, 1))
    _check(denoisers)
    images: dict[str, Tensor] = {}
    if reference is not None:
        images[REFERENCE] = open_images(reference).floats()
    expected = _expected(counter, images, expected)
    noise = starting_noise(next(iter(denoisers.values())), n, seed, None)
    # A counter or a denoiser that cannot be used is refused before any image is drawn.
    _count(counter, images.get(REFERENCE, noise)[:1].clamp(-1, 1))
    samplings = {
        name: Sampling(denoiser, x_T=noise, steps=steps, seed=seed, label=label, batch_size=batch_size)
        for name, denoiser in denoisers.items()
    }
    for number, (name, sampling) in enumerate(samplings.items()):
        part = part_of(progress, "drawing", number / len(denoisers), (number + 1) / len(denoisers))
        sampling.prepare(part)
        drawn = [sampling.draw(lo, hi, part).images for lo, hi in sampling.batches]
        images[name] = torch.cat(drawn).cpu()
    settings = {
        "n": n,
        "steps": steps,
        "seed": seed,
        "label": label,
        "denoisers": {name: denoiser.settings for name, denoiser in denoisers.items()},
    }
    return _counted(counter, images, expected, settings)


@dataclass(frozen=True)
class FeatureCounts(ShownRows):
    """Counts of a feature in drawn images, made by `count_features`.

    Attributes
    ----------
    rows : list of dict
        One row per image: `name` of the denoiser, or "training images"; `image`, its number; `count`; and
        `right`, whether the count is the expected count.
    images : dict of str to Tensor
        The images by name, (n, C, H, W) in [-1, 1]; the reference comes first.
    settings : dict
    """

    rows: list[dict[str, Any]] = field(repr=False)
    images: dict[str, Tensor] = field(repr=False)
    settings: dict[str, Any]

    def counts(self) -> dict[str, np.ndarray]:
        """Return the counts by name, int64."""
        return {
            name: np.array([row["count"] for row in self.rows if row["name"] == name]) for name in self.images
        }

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per name.

        `right` is the share of images with the expected count, and `mean` the mean count, each with a
        bootstrap 95 % interval `_low` to `_high`; `fewer` and `more` are the shares of images with a smaller
        and a larger count.
        """
        expected = self.settings["expected"]
        found = []
        for name, counts in self.counts().items():
            row = {"name": name, "images": len(counts)}
            for column, values in (("right", counts == expected), ("mean", counts)):
                _, low, high = bootstrap_interval(values, np.mean, resamples=RESAMPLES)
                row |= {column: float(values.mean()), f"{column}_low": low, f"{column}_high": high}
            more, fewer = (counts > expected).mean(), (counts < expected).mean()
            found.append({**row, "fewer": float(fewer), "more": float(more)})
        return found

    def recount(self, counter: Counter, expected: int | None = None) -> FeatureCounts:
        """Count another feature in the same images; `counter` and `expected` as for `count_features`."""
        reference = {name: x for name, x in self.images.items() if name == REFERENCE}
        return _counted(counter, self.images, _expected(counter, reference, expected), self.settings)

    def to_csv(self, path: str | Path) -> None:
        """Write the rows."""
        write_csv(path, self.rows)

    def to_json(self, path: str | Path) -> None:
        """Write settings, summary and rows."""
        write_json(path, {"settings": self.settings, "summary": self.summary(), "rows": self.rows})

    def plot(self) -> Figure:
        """Draw the distribution of counts, and the share of right counts; needs matplotlib."""
        return plot_counts(self.counts(), self.summary(), self.settings["expected"])

    def plot_images(self, most: int = 12) -> Figure:
        """Draw a row of images per name, with their counts, `most` images from the same noise."""
        images = {name: x[:most] for name, x in self.images.items()}
        return plot_examples(images, self.counts(), self.settings["expected"])


def _check(denoisers: Mapping[str, Denoiser]) -> None:
    if not denoisers:
        raise InputError("there are none", parameter="denoisers", remedy="give at least one")
    if REFERENCE in denoisers:
        raise InputError(
            f"{REFERENCE!r} is the name of the reference", parameter="denoisers", remedy="use another name"
        )
    shapes = {name: denoiser.shape for name, denoiser in denoisers.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(
            f"images have different shapes: {shapes}", parameter="denoisers", remedy="use images of one shape"
        )


def _expected(counter: Counter, reference: Mapping[str, Tensor], expected: int | None) -> int:
    """Return the right count: the given count, or the commonest count of the reference."""
    if expected is not None:
        return expected
    if not reference:
        raise InputError("there is none", parameter="expected", remedy="give it, or reference images")
    return int(np.bincount(_count(counter, reference[REFERENCE])).argmax())


def _counted(
    counter: Counter, images: Mapping[str, Tensor], expected: int, settings: Mapping[str, Any]
) -> FeatureCounts:
    rows = [
        {"name": name, "image": i, "count": int(count), "right": bool(count == expected)}
        for name, x in images.items()
        for i, count in enumerate(_count(counter, x))
    ]
    named = {"counter": getattr(counter, "__name__", str(counter)), "expected": expected}
    return FeatureCounts(rows, dict(images), {**settings, **named})


def _count(counter: Counter, images: Tensor) -> np.ndarray:
    counts = np.asarray(counter(images))
    if counts.shape != (len(images),) or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise InputError(
            f"returned {counts.dtype} of shape {counts.shape} for images of shape {tuple(images.shape)}",
            parameter="counter",
            remedy="return one whole number from 0 per image",
        )
    return counts
