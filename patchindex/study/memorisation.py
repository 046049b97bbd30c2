"""`memorisation`: at which locality scale and noise a score machine gives training images back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from patchindex.checks import check_least, check_times
from patchindex.errors import InputError
from patchindex.exact import ScoreRequest, scan
from patchindex.geometry import Geometry
from patchindex.images import ImagesLike, open_images
from patchindex.images.by_label import TrainingImages
from patchindex.images.fingerprints import all_fingerprints
from patchindex.runtime import Progress, as_progress, part_of, plain_state
from patchindex.sampling import draw_noise
from patchindex.schedules import NoiseSchedule, noise_schedule
from patchindex.schedules.frames import with_noise
from patchindex.store.text_files import write_csv, write_json
from patchindex.study.contributions import some_pixels
from patchindex.study.originality_plots import plot_memorisation
from patchindex.study.shown import ShownRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Memorisation", "memorisation"]

SINGLE = 1.5  # effective sample size below which one patch has at least 79 % of the weight


@plain_state()
def memorisation(
    source: ImagesLike,
    scales: Sequence[int] = (3, 5, 9, 13, 17),
    times: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
    *,
    machine: str = "bbELS",
    train_windows: str | None = None,
    noise: str | NoiseSchedule = "cosine",
    n: int = 8,
    pixels: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Memorisation:
    """Measure the exact posterior mean of noisy images, held out and not, at each scale and time.

    `n` images, evenly spread, are held out: the machine has neither them nor copies of them. As many of the
    others are noised as well. Where the effective sample size is near 1, the posterior mean of a pixel is the
    centre of the training patch that is nearest to its noisy window; for a training image this patch is its
    own.

    Parameters
    ----------
    source : images, as for `open_images`
    scales : sequence of int
        Locality scales; ignored by IS.
    times : sequence of float
        Times in (0, 1).
    machine, train_windows, noise
        As for `ScoreMachine`. bbELS and LS know each window of their own training images; ELS with `valid`
        windows has none at the borders, and returns no whole image.
    n : int
        Held-out images.
    pixels : int
        Pixels per image, drawn at random from those whose neighbourhood is not flat.
    seed : int
        Seed of the noise and of the pixels.
    progress : Progress, optional

    Returns
    -------
    Memorisation
        A row per scale and time.

    Raises
    ------
    InputError
        When not more than n images are left for the machine, all neighbourhoods are flat, or a setting is
        unknown.

    Examples
    --------
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 12, 12), np.uint8)
    >>> found = memorisation(images, (3, 9), (0.05, 0.9), n=2, pixels=8)
    >>> [(row["k"], row["t"], row["single"] > 0.5) for row in found.rows]
    [(3, 0.05, True), (3, 0.9, False), (9, 0.05, True), (9, 0.9, False)]
    """
    progress = as_progress(progress)
    check_least(n=(n, 1), pixels=(pixels, 1), seed=(seed, 0))
    check_times(times)
    opened, schedule = open_images(source), noise_schedule(noise)
    geometries = [Geometry.of(machine, k, opened.shape[1:3], train_windows or "valid") for k in scales]
    held = np.linspace(0, len(opened) - 1, n).round().astype(np.int64)
    prints = all_fingerprints(opened)
    rest = np.flatnonzero(~np.isin(prints, prints[held]))
    if len(rest) <= n:
        raise InputError(
            f"leaves {len(rest)} of {len(opened)} images that are not copies of held-out images",
            parameter="n",
            remedy="hold out fewer images",
        )
    known = rest[np.linspace(0, len(rest) - 1, n).round().astype(np.int64)]
    training = TrainingImages(opened.subset(rest))
    clean = opened.floats(np.concatenate([held, known]))
    chosen = some_pixels(clean, pixels, seed)
    held_count = sum(len(numbers) for numbers in chosen[:n])
    if held_count == 0 or all(len(numbers) == 0 for numbers in chosen[n:]):
        raise InputError(
            "all neighbourhoods are flat", parameter="source", remedy="give images with contrast"
        )
    truth = torch.cat([image.flatten(1).T[numbers] for image, numbers in zip(clean, chosen, strict=True)])
    noises = draw_noise(seed, len(clean), tuple(clean.shape[1:]))
    rows = []
    cells = [(k, geometry, t) for k, geometry in zip(scales, geometries, strict=True) for t in times]
    for done, (k, geometry, t) in enumerate(cells):
        beta = schedule(t)
        x = with_noise(clean, noises, beta)
        part = part_of(progress, "memorisation", done / len(cells), (done + 1) / len(cells))
        state = scan(ScoreRequest(training, geometry, x, beta, pixels=chosen, progress=part))
        squares = (state.mean() - truth).square().mean(1)
        rmse = [float(some.mean().sqrt()) for some in (squares[:held_count], squares[held_count:])]
        ess = state.ess()[:held_count]
        rows.append(
            {
                "k": k,
                "t": t,
                "beta": beta,
                "ess": float(ess.log().mean().exp()),
                "single": float((ess < SINGLE).double().mean()),
                "rmse_held_out": rmse[0],
                "rmse_training": rmse[1],
                "ratio": rmse[1] / rmse[0] if rmse[0] else None,
            }
        )
    settings = {"machine": machine, "train_windows": train_windows, "n": n, "pixels": pixels, "seed": seed}
    return Memorisation(rows, {**settings, "training_images": len(training)})


@dataclass(frozen=True)
class Memorisation(ShownRows):
    """Errors and effective sample sizes by locality scale and time, made by `memorisation`.

    Attributes
    ----------
    rows : list of dict
        One row per scale `k` and time `t`, with the noise variance `beta`. `ess`: effective sample size of
        held-out images, the geometric mean over pixels. `single`: share of their pixels with an effective
        sample size below 1.5, where one patch decides. `rmse_held_out`, `rmse_training`: error of the
        posterior mean against the clean image. `ratio`: the error on training images over the error on
        held-out images; near 0 the machine memorises, near 1 it treats both alike. None if no
        held-out image has an error.
    settings : dict
    """

    rows: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any]

    def shown_rows(self) -> list[dict[str, Any]]:
        """Return the rows."""
        return self.rows

    def best(self) -> dict[float, int]:
        """Return the scale with the least error on held-out images, by time."""
        times = dict.fromkeys(row["t"] for row in self.rows)
        at = {t: [row for row in self.rows if row["t"] == t] for t in times}
        return {t: int(min(rows, key=lambda row: row["rmse_held_out"])["k"]) for t, rows in at.items()}

    def to_csv(self, path: str | Path) -> None:
        """Write the rows."""
        write_csv(path, self.rows)

    def to_json(self, path: str | Path) -> None:
        """Write settings and rows."""
        write_json(path, {"settings": self.settings, "rows": self.rows})

    def plot(self) -> Figure:
        """Draw effective sample sizes and errors; a white dot is where one patch decides most pixels."""
        return plot_memorisation(self.rows)
