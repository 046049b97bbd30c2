"""Figures of comparisons with a network; matplotlib comes with the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchindex.figures import figure_class
from patchindex.study.theory_table import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves", "plot_scatter", "plot_trajectories"]

INPUTS = {
    "trajectory": "images on the network's trajectory",
    "training": "training images with noise",
    "held-out": "held-out images with noise",
}
PANEL = 3.0  # inches
EDGE = 0.03  # of an axis beyond its values


def plot_scatter(runs: Sequence[Run]) -> Figure:
    """Draw r of a run's first denoiser against r of each other denoiser: a row per run, a point per image."""
    others = list(dict.fromkeys(name for run in runs for name in run.denoisers[1:]))
    columns = max(1, len(others))
    size = (PANEL * columns + 0.5, PANEL * len(runs) + 0.5)
    figure = figure_class()(figsize=size, layout="constrained")
    panels = figure.subplots(len(runs), columns, squeeze=False)
    for run, line in zip(runs, panels, strict=True):
        steps, first = run.grids[0], run.denoisers[0]
        y = run.column(first, steps, "pearson_r")
        every = [run.column(name, steps, "pearson_r") for name in run.denoisers]
        low, high = min(0.0, *(float(values.min()) for values in every)) - EDGE, 1 + EDGE
        for axes, name in zip(line, others or [first], strict=True):
            if others and name not in run.denoisers[1:]:
                axes.set_axis_off()
                continue
            x = run.column(name, steps, "pearson_r")
            axes.plot([low, high], [low, high], color="0.7", linewidth=1)
            axes.scatter(x, y, s=14, alpha=0.7, linewidths=0)
            axes.set(xlim=(low, high), ylim=(low, high), xlabel=f"r of {name}", aspect="equal")
            axes.set_title(f"larger r with {first}:\n{100 * np.mean(y > x):.0f} % of images", fontsize=9)
        left = next(axes for axes in line if axes.axison)
        left.set_ylabel(f"{run.name}\nr of {first}" if len(runs) > 1 else f"r of {first}")
    return figure


def plot_curves(curves: Sequence[dict[str, Any]]) -> Figure:
    """Draw the medians of `Theory.curves` over t: r in the first row, mean square error in the second."""
    kinds = [kind for kind in INPUTS if any(row["inputs"] == kind for row in curves)]
    figure = figure_class()(figsize=(4.2 * len(kinds), 7), layout="constrained")
    panels = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    names = list(dict.fromkeys(row["denoiser"] for row in curves))
    for column, kind in enumerate(kinds):
        top, bottom = panels[:, column]
        for number, name in enumerate(names):
            mine = sorted(
                (row for row in curves if (row["denoiser"], row["inputs"]) == (name, kind)),
                key=lambda row: row["t"],
            )
            t = [row["t"] for row in mine]
            label = name if column == 0 else None
            top.plot(t, [row["pearson_r"] for row in mine], "o-", ms=3, color=f"C{number}", label=label)
            bottom.plot(t, [row["mse"] for row in mine], "o-", ms=3, color=f"C{number}")
        top.set(title=INPUTS[kind])
        bottom.set(xlabel="t", yscale="log")
    panels[0, 0].set_ylabel("r of posterior means with the network's")
    panels[1, 0].set_ylabel("mean square difference from the network")
    figure.legend(loc="outside upper center", ncols=min(len(names), 8))
    return figure


def plot_trajectories(runs: Sequence[Run]) -> Figure | None:
    """Draw r of posterior means along the trajectories of networks over t, a panel per run.

    None if no run has compared posterior means there.
    """
    curves = {run.name: [row for row in run.points if row["inputs"] == "trajectory"] for run in runs}
    curves = {name: rows for name, rows in curves.items() if rows}
    if not curves:
        return None
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = figure_class()(figsize=(4.2 * columns, 3.6 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    names = list(dict.fromkeys(row["denoiser"] for rows in curves.values() for row in rows))
    for axes, (title, rows) in zip(panels, curves.items(), strict=False):
        for number, name in enumerate(names):
            mine = sorted((row for row in rows if row["denoiser"] == name), key=lambda row: row["t"])
            r = [np.nan if row["pearson_r"] is None else row["pearson_r"] for row in mine]
            axes.plot([row["t"] for row in mine], r, "o-", ms=3, color=f"C{number}", label=name)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("t")
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    panels[0].set_ylabel("r of posterior means with the network's")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 5))
    return figure
