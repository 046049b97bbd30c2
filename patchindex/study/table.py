"""`Study`: the results of comparing estimators, as a table, a summary, files and a figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from patchindex.estimators.base import COSTS
from patchindex.store.text_files import write_csv, write_json
from patchindex.study.metrics import root_mean_square
from patchindex.study.plots import plot_accuracy
from patchindex.study.shown import ShownRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLUMNS", "Study"]

PLACE = ("estimator", "trajectory", "image", "step", "t", "k")
MEASURES = ("rmse", "max_error", "bias", "stderr", "coverage", "pearson_r", "r2", "captured_mass", "ess")
COLUMNS = (*PLACE, *MEASURES, *COSTS, "seconds")


@dataclass(frozen=True)
class Study(ShownRows):
    """A comparison of estimators with exact scores, made by `compare`.

    Attributes
    ----------
    rows : list of dict
        A tidy table with the columns `COLUMNS`: one row per estimator, trajectory, image and step. Values
        that do not apply are None.

        On the trajectory `"exact"` all estimators see the noisy images of the exact trajectory; `t` is the
        time before the step. `rmse`, `max_error` and `coverage` (see `accuracy`) compare posterior means.
        `rmse` and `stderr` are root mean squares over repeats, and `max_error` is the largest of all repeats.
        `bias` is the RMSE of the mean of all repeats; noise alone makes it about `rmse / sqrt(repeats)`.

        On the trajectory `"own"` an estimator follows its own scores. `rmse`, `max_error`, `pearson_r` and
        `r2` compare the image after the step with the image of the exact trajectory.

        The costs `patches_evaluated`, `codes_scanned`, `exact_pixels` and `seconds` are averages over the
        images of a batch and over repeats. On the exact trajectory, `seconds` leaves out the time to open a
        scale of the index.
    images : dict of str to Tensor
        The last images of each estimator's own trajectory, `"exact"` included, (n, C, H, W).
    settings : dict
    """

    rows: list[dict[str, Any]] = field(repr=False)
    images: dict[str, Tensor] = field(repr=False)
    settings: dict[str, Any]

    def summary(self) -> list[dict[str, Any]]:
        """Return one row per estimator with its worst values; None where a value does not apply.

        On the exact trajectory, each step has one `rmse`, one `coverage` and one `rmse / stderr` over all
        images. The summary has the largest `rmse`, the least `coverage`, and the least and largest ratio of
        all steps; and the largest error of any image. On its own trajectory, an estimator draws images: the
        summary has the least `pearson_r` and `r2` of a drawn image, and the seconds to draw one image.
        """
        found = []
        for name in self.images:
            mine = [row for row in self.rows if row["estimator"] == name]
            along = [row for row in mine if row["trajectory"] == "exact"]
            own = [row for row in mine if row["trajectory"] == "own"]
            last = [row for row in own if row["step"] == 1]  # step 1 is the last: its image is drawn
            steps = [[row for row in along if row["step"] == i] for i in {row["step"] for row in along}]
            known = [rows for rows in steps if all(row["stderr"] is not None for row in rows)]
            errors = [(_rms(rows, "rmse"), _rms(rows, "stderr")) for rows in known]
            ratios = [rmse / stderr for rmse, stderr in errors if stderr > 0]
            coverage = [sum(row["coverage"] for row in rows) / len(rows) for rows in known]
            found.append(
                {
                    "estimator": name,
                    "rmse": max((_rms(rows, "rmse") for rows in steps), default=None),
                    "max_error": max((row["max_error"] for row in along), default=None),
                    "coverage": min(coverage, default=None),
                    "least_ratio": min(ratios, default=None),
                    "largest_ratio": max(ratios, default=None),
                    "pearson_r": _least(last, "pearson_r"),
                    "r2": _least(last, "r2"),
                    "seconds": sum(row["seconds"] for row in own) / len(last),
                }
            )
        return found

    def to_csv(self, path: str | Path) -> None:
        """Write the table; None is an empty field."""
        write_csv(path, self.rows, COLUMNS)

    def to_json(self, path: str | Path) -> None:
        """Write settings, summary and table."""
        write_json(path, {"settings": self.settings, "summary": self.summary(), "rows": self.rows})

    def plot(self) -> Figure:
        """Draw error, error over standard error, captured mass and time against t; needs matplotlib.

        Of exact scores alone, draw the time.
        """
        return plot_accuracy(self.rows, list(self.images))


def _rms(rows: list[dict[str, Any]], column: str) -> float:
    return root_mean_square(row[column] for row in rows)


def _least(rows: list[dict[str, Any]], column: str) -> float | None:
    return min((row[column] for row in rows if row[column] is not None), default=None)
