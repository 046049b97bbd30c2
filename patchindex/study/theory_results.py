"""`Theory`: the results of comparing denoisers with a network, as tables, files and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from patchindex.sampling.pictures import image_grid
from patchindex.store.text_files import write_csv, write_json
from patchindex.study.noised import MEASURES
from patchindex.study.plots_theory import plot_curves, plot_scatter
from patchindex.study.shown import ShownRows
from patchindex.study.theory_table import RESULTS, Run, write_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Theory"]


@dataclass(frozen=True)
class Theory(ShownRows):
    """A comparison of analytic denoisers with a network, made by `theory`.

    Attributes
    ----------
    images : list of dict
        A row per number of network steps, denoiser and image: `pearson_r`, `r2` and `mse` of the denoiser's
        final image against the network's, and the `seconds` that the denoiser took. An image of one colour
        has `pearson_r` 0, and no `r2` if the network drew it. r is what the paper calls r^2.
    points : list of dict
        A row per denoiser, kind of noisy image (`inputs`: `trajectory`, `training` or `held-out`), image and
        time. `pearson_r`, `r2` and `mse` compare the posterior mean with the network's, as above; `error` and
        `network_error` are the mean square errors of both against the clean image, None on the trajectory.
    finals : dict of str to Tensor
        The final images, (n, C, H, W), of the network (`network, 150 steps`) and of each denoiser.
    settings : dict
    """

    images: list[dict[str, Any]] = field(repr=False)
    points: list[dict[str, Any]] = field(repr=False)
    finals: dict[str, Tensor] = field(repr=False)
    settings: dict[str, Any]

    @cached_property
    def _run(self) -> Run:
        return Run("network", {}, self.settings, self.images)

    def run(self, name: str = "network", network: Mapping[str, Any] | None = None) -> Run:
        """Return the part of the results that goes into a table, with a name and facts about the network."""
        return replace(self._run, name=name, network=dict(network or {}))

    def summary(self) -> list[dict[str, Any]]:
        """Return a row per number of network steps and denoiser: see `Run.summary`."""
        return self._run.summary()

    def write(
        self, folder: str | Path, name: str = "network", network: Mapping[str, Any] | None = None
    ) -> None:
        """Write all tables and figures to a folder; needs matplotlib.

        Without posterior means, `trajectory.csv` and `curves.png` are left out.

        Parameters
        ----------
        folder : str or Path
        name : str
            Data set and network, for the tables.
        network : mapping, optional
            Facts about the network, such as `parameters` and `loss`.
        """
        folder, run = Path(folder), self.run(name, network)
        figures = {"scatter": plot_scatter([run])}
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "images.csv", self.images)
        if self.points:
            write_csv(folder / "trajectory.csv", self.points)
            figures["curves"] = self.plot_curves()
        write_tables(folder, [run])
        for kind, figure in figures.items():
            figure.savefig(folder / f"{kind}.png", dpi=150)
        self.grid().save(folder / "images.png")
        results = {
            "name": name,
            "network": run.network,
            "settings": self.settings,
            "versions": {package: version(package) for package in ("patchindex", "torch", "numpy")},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": self.seconds(),
            "summary": run.summary(),
            "points": self.curves(),
            "images": self.images,
        }
        write_json(folder / RESULTS, results)  # last: only a complete folder can be joined

    def seconds(self) -> dict[str, dict[str, float]]:
        """Return the seconds of each denoiser: for all images, and for all posterior means."""
        steps = self.images[0]["network_steps"]
        found: dict[str, dict[str, float]] = {}
        for key, rows in (
            ("images", [row for row in self.images if row["network_steps"] == steps]),
            ("posterior_means", self.points),
        ):
            for row in rows:
                mine = found.setdefault(row["denoiser"], {"images": 0.0, "posterior_means": 0.0})
                mine[key] += row["seconds"]
        return found

    def curves(self) -> list[dict[str, Any]]:
        """Return the medians over images of the measures at each time, by denoiser and kind of input."""
        groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
        for row in self.points:
            groups.setdefault((row["denoiser"], row["inputs"], row["t"]), []).append(row)
        rows = []
        for (denoiser, inputs, t), found in groups.items():
            row = {
                "denoiser": denoiser,
                "inputs": inputs,
                "t": t,
                "beta": found[0]["beta"],
                "k": found[0]["k"],
            }
            for measure in MEASURES:
                values = [each[measure] for each in found if each[measure] is not None]
                row[measure] = float(np.median(values)) if values else None
            rows.append(row)
        return rows

    def plot_scatter(self) -> Figure:
        """Draw r of the first denoiser against r of each other denoiser, a point per image."""
        return plot_scatter([self.run()])

    def plot_curves(self) -> Figure:
        """Draw r and mean square error of posterior means over t."""
        return plot_curves(self.curves())

    def grid(self, columns: int = 12) -> Image.Image:
        """Return the first images: a row of the network, and one of each denoiser with its median r."""
        medians = {row["denoiser"]: row["pearson_r"] for row in reversed(self.summary())}
        names = [name for name in self.finals if name in medians]
        network = next(iter(self.finals))
        rows = {network: self.finals[network]} | {
            f"{name}\nr = {medians[name]:.2f}": self.finals[name] for name in names
        }
        return image_grid(rows, columns)
