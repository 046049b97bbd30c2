"""`Explanation`: everything that figures and the page show of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from patchindex.denoisers import Attributions, ScoreMachine
from patchindex.explain.mosaic import TOLERANCE, Mosaic, check_tolerance, mosaic_of, require_sparse
from patchindex.explain.steps import Steps, explain_steps
from patchindex.images.by_label import as_tensor, to_unit
from patchindex.images.nearest import nearest_images
from patchindex.runtime import Progress, as_progress, part_of
from patchindex.store.text_files import write_json

__all__ = ["Explanation", "explain_sample"]

NEAREST = 4  # training images that are shown beside the sample
SOURCES = 8  # training images that most pixels came from


def explain_sample(
    machine: ScoreMachine,
    steps: Steps,
    *,
    top: int = 8,
    last_only: bool = False,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> Explanation:
    """Find the training patches behind all pixels of a sample, its mosaic and its nearest training images.

    Parameters
    ----------
    machine : ScoreMachine
        Its estimator decides how patches are found; nearest patches and images are always exact.
    steps : Steps
        The steps of the sample, from `redraw` or `read_steps`.
    top : int
        Patches per pixel and step.
    last_only : bool
        Find patches for the last step only.
    tolerance : float
        As for `mosaic`.
    progress : Progress, optional

    Returns
    -------
    Explanation

    Raises
    ------
    InputError
        As for `ScoreMachine.explain`, when `tolerance` is not a number from 0 on, or when scipy is not
        installed.

    Examples
    --------
    >>> import torch
    >>> from patchindex.explain import redraw
    >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> found = explain_sample(m, redraw(m, torch.randn(1, 1, 8, 8), steps=5))
    >>> found.mosaic.image.shape, len(found.patches)
    ((8, 8), 4)
    """
    require_sparse()  # without scipy, fail before any work
    check_tolerance(tolerance)
    progress = as_progress(progress)
    patches = explain_steps(
        machine, steps, top, last_only=last_only, progress=part_of(progress, "explain", 0.0, 0.8)
    )
    last = patches[-1]
    assert last is not None
    found = mosaic_of(
        machine,
        last,
        steps.image[None].to(machine.device),
        t=float(steps.t[-1]),
        k=int(steps.k[-1]) or None,
        label=steps.label,
        tolerance=tolerance,
        progress=part_of(progress, "explain", 0.8, 0.95),
    )
    training = machine.training
    near = nearest_images(
        steps.image[None], training, kept=NEAREST, progress=part_of(progress, "explain", 0.95, 1.0)
    )
    ids = near.image[0].numpy()
    return Explanation(
        steps=steps,
        patches=patches,
        mosaic=found,
        nearest=to_unit(as_tensor(training.read_some(training.numbers_of(ids)))).permute(0, 3, 1, 2),
        nearest_images=ids,
        nearest_distances=near.distance[0].numpy(),
        settings={"sample": steps.number, "seed": steps.seed, "top": top, "machine": machine.settings},
        machine=machine,
    )


@dataclass(frozen=True, repr=False)
class Explanation:
    """The training patches behind a sample, made by `explain_sample`.

    Attributes
    ----------
    steps : Steps
    patches : list of Attributions or None
        The patches of all pixels at each step; None at steps that were left out.
    mosaic : Mosaic
        Of the last step.
    nearest : Tensor, shape (m, C, H, W)
        The training images nearest to the sample, up to four, the nearest first.
    nearest_images : numpy.ndarray, shape (m,), int64
        Their numbers in the source.
    nearest_distances : numpy.ndarray, shape (m,), float64
        Root mean square differences per pixel and channel, in units of [-1, 1].
    settings : dict
    machine : ScoreMachine
    """

    steps: Steps
    patches: list[Attributions | None]
    mosaic: Mosaic
    nearest: Tensor
    nearest_images: np.ndarray
    nearest_distances: np.ndarray
    settings: dict[str, Any]
    machine: ScoreMachine = field(repr=False)

    def by_step(self) -> list[dict[str, Any]]:
        """Return the numbers of each step, over its pixels.

        `ess`: median. `ess_geometric`: geometric mean. `entropy`: mean, in nats. `heaviest`: mean weight of
        the heaviest patch. `source_images`: training images with the heaviest patch of a pixel.
        `captured_mass`: mean. `stderr`: root mean square. None where a number is not known.
        """
        rows = []
        for i, found in enumerate(self.patches):
            ess, stderr = self.steps.ess[i], self.steps.stderr[i]
            rows.append(
                {
                    "t": float(self.steps.t[i]),
                    "k": int(self.steps.k[i]) or None,
                    "ess": _number(np.median(ess)),
                    "ess_geometric": _number(np.exp(np.log(np.maximum(ess, 1)).mean())),
                    "stderr": _number(np.sqrt(np.square(stderr).mean())),
                    "captured_mass": _number(self.steps.captured_mass[i].mean()),
                    "method": None if found is None else found.method,
                    "entropy": None if found is None else _number(found.entropy.mean()),
                    "heaviest": None if found is None else _number(found.weight[:, 0].mean()),
                    "source_images": None if found is None else len(np.unique(found.image[:, 0])),
                }
            )
        return rows

    def pixels(self, pixels: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Return the patches of some pixels (y, x) at each explained step, as plain data."""
        width, rows = self.mosaic.image.shape[1], []
        for y, x in pixels:
            for i, found in enumerate(self.patches):
                if found is None:
                    continue
                one = found[y * width + x]
                rows.append(
                    {
                        "pixel": [y, x],
                        "t": float(self.steps.t[i]),
                        "method": one.method,
                        "ess": _number(one.ess),
                        "entropy": _number(one.entropy),
                        "captured_mass": _number(one.captured_mass),
                        "rest": one.rest,
                        "patches": [
                            {
                                **self._named(n),
                                "y": int(py),
                                "x": int(px),
                                "label": int(c),
                                "weight": float(w),
                            }
                            for n, py, px, c, w in zip(
                                one.image, one.y, one.x, one.label, one.weight, strict=True
                            )
                        ],
                    }
                )
        return rows

    def sources(self, most: int = SOURCES) -> list[tuple[int, int]]:
        """Return the training images that most pixels came from: number in the source, and pixels."""
        images, counts = np.unique(self.mosaic.image, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        return [(int(images[i]), int(counts[i])) for i in order]

    def source(self, image: int) -> Tensor:
        """Return one training image, (C, H, W) in [-1, 1], by its number in the source."""
        training = self.machine.training
        number = training.numbers_of(np.array([image]))
        return to_unit(as_tensor(training.read_some(number)))[0].permute(2, 0, 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers of the figures as plain data."""
        return {
            "settings": self.settings,
            "mosaic": self.mosaic.summary(),
            "steps": self.by_step(),
            "sources": [{**self._named(n), "pixels": count} for n, count in self.sources()],
            "nearest": [
                {**self._named(n), "distance": float(d)}
                for n, d in zip(self.nearest_images, self.nearest_distances, strict=True)
            ],
        }

    def _named(self, image: int) -> dict[str, Any]:
        """Return the number of a training image, and its file name if the training images have names."""
        training = self.machine.training
        name = {"name": training.image_names([image])[0]} if training.has_names else {}
        return {"image": int(image), **name}

    def to_json(self, path: str | Path, **more: Any) -> None:
        """Write the numbers of the figures, and more items."""
        write_json(path, {**self.as_dict(), **more})

    def __repr__(self) -> str:
        return f"Explanation(sample {self.steps.number}, {len(self.steps)} steps: {self.mosaic!r})"


def _number(value: float) -> float | None:
    """Return a number as JSON has it: None for NaN."""
    return None if np.isnan(value) else float(value)
