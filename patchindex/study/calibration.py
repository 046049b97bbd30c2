"""`Calibration`: the locality scale of each noise level, with the curves that it was chosen by."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchindex.errors import Option, OutputExistsError
from patchindex.schedules import LocalitySchedule, Provenance
from patchindex.store.atomic import atomic_write
from patchindex.store.text_files import csv_text, write_csv, write_json
from patchindex.study.plots_calibration import plot_calibration
from patchindex.study.shown import ShownRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "COSINE", "FILES", "MSE", "Calibration"]

COSINE, MSE = "cosine", "mse"
FILES = ("schedule.json", "calibration.csv", "calibration.json", "calibration.png")
MEASURES = ("cosine", "mse", "train_mse", "ess", "train_ess")
COLUMNS = ("sample", "label", "step", "t", "beta", "k", *MEASURES, "seconds")


@dataclass(frozen=True)
class Calibration(ShownRows):
    """The locality scale of each noise level, as `calibrate` measured it.

    Attributes
    ----------
    rows : list of dict
        A tidy table with the columns `COLUMNS`: one row per step, sample and scale, lowest noise first.
        Values that do not apply are None.

        With a network, `cosine` is the cosine similarity of the scores of machine and network, and `mse` is
        the mean squared difference of their posterior means. Without a network, `mse` is the mean squared
        error of the posterior mean, for an image that is not among the training images, and `train_mse` is
        the same with the image among them. `ess` and `train_ess` are effective sample sizes, averages over
        pixels. `seconds` are per image.
    settings : dict
    """

    rows: list[dict[str, Any]] = field(repr=False)
    settings: dict[str, Any]

    @property
    def schedule(self) -> LocalitySchedule:
        """The locality schedule, at the noise variances that were measured, with quartiles over samples."""
        summary, settings = self.summary(), self.settings
        if self.settings["way"] == "network":
            network = str(settings["network_name"])
            like = "largest cosine similarity" if settings["measure"] == COSINE else "least squared error"
            method = f"{like} to the network's score, median of {len(settings['labels'])} samples"
        else:
            network = ""
            method = f"least denoising error on {len(settings['labels'])} held-out images"
        return LocalitySchedule(
            "calibrated",
            tuple((row["beta"], row["k"]) for row in summary),
            Provenance(
                network=network,
                data=settings["source"],
                image_size=tuple(settings["image_size"]),
                noise=settings["noise"],
                method=f"{method}, machine {settings['machine']}",
            ),
            tuple((row["low"], row["high"]) for row in summary),
        )

    def table(self, measure: str) -> np.ndarray:
        """Return a measure as float64 (steps, samples, scales), NaN for None."""
        settings = self.settings
        values = [np.nan if row[measure] is None else row[measure] for row in self.rows]
        return np.array(values, float).reshape(-1, len(settings["labels"]), len(settings["scales"]))

    def curve(self, measure: str) -> np.ndarray:
        """Return a measure by noise level and scale, float64 (steps, scales).

        It is the median over samples with a network, and the mean over images without.
        """
        values = self.table(measure)
        return np.asarray(np.median(values, 1) if self.settings["way"] == "network" else values.mean(1))

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per noise level, lowest noise first.

        `k` is the scale of the noise level; with a network it is the median over samples, the smaller of two,
        of the best scale of each sample; without a network it is the scale of the least mean error. `low` and
        `high` are the quartiles of the best scales of the samples. `value` is the measure of scale k:
        its median over samples with a network, its mean without.

        `memorises_from` is the smallest scale from which on the mean error on held-out images is more than
        `ratio` times the mean error on training images; None where no scale memorises, and with a network.
        """
        scales, measure = np.array(self.settings["scales"]), self.settings["measure"]
        on_network = self.settings["way"] == "network"
        values = self.table(measure)
        sign = -1 if measure == COSINE else 1
        best = scales[(sign * values).argmin(2)]
        levels = self.rows[:: values.shape[1] * values.shape[2]]
        low, median, high = (np.quantile(best, q, axis=1, method="inverted_cdf") for q in (0.25, 0.5, 0.75))
        average = self.curve(measure)
        chosen = median if on_network else scales[average.argmin(1)]
        memorised = self._memorised() if not on_network else [None] * len(levels)
        return [
            {
                "step": row["step"],
                "t": row["t"],
                "beta": row["beta"],
                "k": int(chosen[i]),
                "low": int(low[i]),
                "high": int(high[i]),
                "value": float(average[i, np.searchsorted(scales, chosen[i])]),
                "memorises_from": memorised[i],
            }
            for i, row in enumerate(levels)
        ]

    def _memorised(self) -> list[int | None]:
        scales = self.settings["scales"]
        ratios = self.table("mse").mean(1) / self.table("train_mse").mean(1).clip(1e-30)
        found: list[int | None] = []
        for ratio in ratios:
            below = np.flatnonzero(ratio <= self.settings["ratio"])
            first = below[-1] + 1 if len(below) else 0
            found.append(scales[first] if first < len(scales) else None)
        return found

    def to_csv(self) -> str:
        """Return the table as CSV; None is an empty field."""
        return csv_text(self.rows, COLUMNS)

    def save(
        self,
        folder: str | Path,
        *,
        beside: Mapping[str, LocalitySchedule] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write the files `FILES` to a folder; the figure needs matplotlib.

        Parameters
        ----------
        folder : path
            It is made if it does not exist.
        beside : mapping of str to LocalitySchedule, optional
            Other schedules for the figure.
        overwrite : bool
            Replace existing files.

        Raises
        ------
        OutputExistsError
            When one of the files exists.
        """
        folder = Path(folder)
        picture = io.BytesIO()
        self.plot(beside).savefig(picture, dpi=120, format="png")
        result = {"settings": self.settings, "summary": self.summary()}
        for name in () if overwrite else FILES:
            if (folder / name).exists():
                raise OutputExistsError(
                    "exists",
                    where=folder / name,
                    remedy=["use another folder, or ", Option("overwrite", True)],
                )
        folder.mkdir(parents=True, exist_ok=True)
        self.schedule.save(folder / FILES[0], overwrite=overwrite)
        write_csv(folder / FILES[1], self.rows, COLUMNS, durable=True)
        write_json(folder / FILES[2], result, durable=True)
        with atomic_write(folder / FILES[3]) as file:
            file.write(picture.getvalue())

    def plot(self, beside: Mapping[str, LocalitySchedule] | None = None) -> Figure:
        """Draw k(t) with quartiles, with other schedules beside it, and the curves; needs matplotlib."""
        curves = {measure: self.curve(measure) for measure in ("cosine", "mse", "train_mse", "ess")}
        return plot_calibration(self.settings, self.summary(), curves, beside or {})
